package main

import (
	"encoding/binary"
	"errors"
	"math"
)

// The few messages of worker.proto that the mock speaks, encoded by hand: field numbers are the proto's. The router under test is what proves
// that they are right.

var errWire = errors.New("not a message of worker.proto")

type message []byte

func (m *message) number(field int, value uint64) {
	if value != 0 {
		*m = binary.AppendUvarint(binary.AppendUvarint(*m, uint64(field)<<3), value)
	}
}

func (m *message) flag(field int, value bool) {
	if value {
		m.number(field, 1)
	}
}

func (m *message) double(field int, value float64) {
	*m = binary.LittleEndian.AppendUint64(binary.AppendUvarint(*m, uint64(field)<<3|1), math.Float64bits(value))
}

func (m *message) bytes(field int, value []byte) {
	*m = binary.AppendUvarint(binary.AppendUvarint(*m, uint64(field)<<3|2), uint64(len(value)))
	*m = append(*m, value...)
}

func (m *message) packed(field int, values []uint64) {
	if len(values) == 0 {
		return
	}
	var inner message
	for _, value := range values {
		inner = binary.AppendUvarint(inner, value)
	}
	m.bytes(field, inner)
}

// fields calls onField with each field's number and either its number or its bytes.
func fields(data []byte, onField func(field int, number uint64, content []byte)) error {
	for len(data) > 0 {
		key, n := binary.Uvarint(data)
		if n <= 0 {
			return errWire
		}
		data = data[n:]
		var number uint64
		var content []byte
		switch key & 7 {
		case 0:
			if number, n = binary.Uvarint(data); n <= 0 {
				return errWire
			}
		case 1:
			n = 8
		case 2:
			length, m := binary.Uvarint(data)
			if m <= 0 || length > uint64(len(data)-m) {
				return errWire
			}
			content, n = data[m:m+int(length)], m+int(length)
		case 5:
			n = 4
		default:
			return errWire
		}
		if n > len(data) {
			return errWire
		}
		data = data[n:]
		onField(int(key>>3), number, content)
	}
	return nil
}

// countPacked is how many numbers a packed field holds: each ends in a byte below 128.
func countPacked(content []byte) int {
	count := 0
	for _, b := range content {
		if b < 128 {
			count++
		}
	}
	return count
}
