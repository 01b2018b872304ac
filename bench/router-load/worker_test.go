package main

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// client is a router's end of a Session: what is written goes down, messages come up.
type client struct {
	down *io.PipeWriter
	up   io.Reader
}

func openSession(t *testing.T, model string) client {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(&mockWorker{model: model, id: "w", artifacts: []artifact{{"tokenizer.json", []byte("{}")}, {"template", []byte("t")}}})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	body, down := io.Pipe()
	request, err := http.NewRequest("POST", "http://"+listener.Addr().String()+"/pagoda.worker.v1.Worker/Session", body)
	if err != nil {
		t.Fatal(err)
	}
	c := client{down: down}
	go c.tell(1, nil)
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { down.Close(); response.Body.Close() })
	c.up = response.Body
	return c
}

func (c client) tell(kind int, content message) {
	var down message
	down.bytes(kind, content)
	_, _ = c.down.Write(framed(down))
}

// hear is the next message of this kind: its fields that are messages, and its numbers.
func (c client) hear(t *testing.T, kind int) (map[int][]message, map[int]uint64) {
	t.Helper()
	for {
		given, err := readMessage(c.up, nil)
		if err != nil {
			t.Fatal(err)
		}
		var content message
		got := 0
		if err := fields(given, func(field int, _ uint64, inner []byte) { got, content = field, inner }); err != nil {
			t.Fatal(err)
		}
		if got != kind {
			continue
		}
		messages, numbers := map[int][]message{}, map[int]uint64{}
		if err := fields(content, func(field int, number uint64, inner []byte) {
			numbers[field] = number
			messages[field] = append(messages[field], inner)
		}); err != nil {
			t.Fatal(err)
		}
		return messages, numbers
	}
}

func submit(id, tokens uint64) message {
	var m message
	m.number(1, id)
	m.packed(4, []uint64{5, 300, 7})
	m.number(7, tokens)
	m.number(22, 32)
	return m
}

func numbersOf(t *testing.T, m message) map[int]uint64 {
	t.Helper()
	numbers := map[int]uint64{}
	if err := fields(m, func(field int, number uint64, _ []byte) { numbers[field] = number }); err != nil {
		t.Fatal(err)
	}
	return numbers
}

func TestASessionSendsOneFrameAStepAndGivesTheReservationBack(t *testing.T) {
	c := openSession(t, "mock-1ms")
	welcome, _ := c.hear(t, 1)
	granted := numbersOf(t, welcome[4][0])[5]
	c.tell(2, submit(7, 3))
	produced, frames := 0, 0
	for {
		frame, _ := c.hear(t, 2)
		frames++
		if len(frame[6]) > 0 {
			produced += countPacked(frame[6][0])
		}
		if frames == 1 && len(frame[12]) != 1 {
			t.Fatal("the first frame does not say that the prefill began")
		}
		if len(frame[8]) == 0 {
			continue
		}
		var usage map[int]uint64
		_ = fields(frame[8][0], func(field int, _ uint64, inner []byte) {
			if field == 6 {
				usage = numbersOf(t, inner)
			}
		})
		if produced != 3 || frames != 3 || usage[1] != 3 || usage[3] != 3 {
			t.Fatalf("%d tokens in %d frames, usage %v", produced, frames, usage)
		}
		if again := numbersOf(t, frame[10][0])[5]; again != granted+32 {
			t.Fatalf("granted %d after %d", again, granted)
		}
		return
	}
}

func TestRunningRequestsShareAStep(t *testing.T) {
	c := openSession(t, "mock-20ms")
	c.hear(t, 1)
	var other, both message
	other.bytes(2, submit(2, 50))
	both.bytes(2, submit(1, 50))
	both.bytes(6, other)
	_, _ = c.down.Write(framed(both))
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		if frame, _ := c.hear(t, 2); len(frame[3]) > 0 && countPacked(frame[3][0]) == 2 {
			return
		}
	}
	t.Fatal("no frame had the rows of both")
}

func TestACancelledRequestEnds(t *testing.T) {
	c := openSession(t, "mock-1ms")
	c.hear(t, 1)
	c.tell(2, submit(1, 1_000_000))
	c.hear(t, 2)
	var cancel message
	cancel.number(1, 1)
	c.tell(3, cancel)
	for {
		if frame, _ := c.hear(t, 2); len(frame[8]) > 0 {
			if reason := numbersOf(t, frame[8][0])[3]; reason != 3 {
				t.Fatalf("reason %d", reason)
			}
			return
		}
	}
}

func TestAPingIsAnsweredWithItsStamp(t *testing.T) {
	c := openSession(t, "mock-0ms")
	c.hear(t, 1)
	var ping message
	ping.number(1, 12345)
	c.tell(4, ping)
	if _, pong := c.hear(t, 4); pong[1] != 12345 || pong[2] == 0 || pong[3] < pong[2] {
		t.Fatalf("%v", pong)
	}
}

func TestBrokenBytesAreNoMessage(t *testing.T) {
	for _, data := range []string{"\x80", "\x0a\x05ab", "\x0b", "\x09\x01"} {
		if fields([]byte(data), func(int, uint64, []byte) {}) == nil {
			t.Errorf("%q was read", data)
		}
	}
}
