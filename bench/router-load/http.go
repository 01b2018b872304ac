package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http/httputil"
	"strconv"
)

// Plain HTTP/1.1 by hand, both sides: net/http costs several times as much, and the rig must stay far cheaper than what it measures.

type head struct {
	first   string // request or status line
	length  int    // -1: not told
	chunked bool
	closes  bool
}

// readHead returns io.EOF when the other side closed between two messages.
func readHead(reader *bufio.Reader) (head, error) {
	found := head{length: -1}
	line, err := reader.ReadSlice('\n')
	if err != nil {
		if len(line) == 0 && errors.Is(err, io.EOF) {
			return found, io.EOF
		}
		return found, fmt.Errorf("reading a first line: %w", err)
	}
	found.first = string(bytes.TrimSpace(line))
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return found, fmt.Errorf("reading headers: %w", err)
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			return found, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if found.length, err = strconv.Atoi(string(value)); err != nil {
				return found, fmt.Errorf("content-length %q is no number", value)
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			found.chunked = bytes.EqualFold(value, []byte("chunked"))
		case bytes.EqualFold(name, []byte("connection")):
			found.closes = bytes.EqualFold(value, []byte("close"))
		}
	}
}

// readBody hands each piece to onPiece as it arrives.
func readBody(reader *bufio.Reader, of head, onPiece func([]byte)) error {
	var body io.Reader
	switch {
	case of.chunked:
		body = httputil.NewChunkedReader(reader)
	case of.length >= 0:
		body = io.LimitReader(reader, int64(of.length))
	case of.closes:
		body = reader
	default:
		return errors.New("the length of a body is not told")
	}
	var buffer [16384]byte
	total := 0
	for {
		n, err := body.Read(buffer[:])
		if n > 0 {
			total += n
			onPiece(buffer[:n])
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading a body: %w", err)
		}
	}
	if of.chunked {
		_, err := reader.ReadSlice('\n') // the empty line after the last chunk
		return err
	}
	if of.length >= 0 && total < of.length {
		return io.ErrUnexpectedEOF
	}
	return nil
}
