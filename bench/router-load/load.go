package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The load generator: closed loop (connections that ask again when they are answered) or open loop (requests due at a constant rate, each on a
// free connection). What counts lies in the window between the lines "begin" and "end" on stdout; the figures follow as JSON.

type load struct {
	settings loadSettings
	head     string
	from, to time.Time // the window
	serial   atomic.Uint64
	stopped  atomic.Bool
	tokens   atomic.Int64 // that came in the window, of whichever requests

	mutex  sync.Mutex
	result loadResult
	first  []float64
	whole  []float64
	late   []float64
	idle   []*connection
	pauses pauses
}

// loadResult is of the requests that ended in the window. Times in milliseconds.
type loadResult struct {
	Requests   int     `json:"requests"`
	Errors     int     `json:"errors"`
	FirstError string  `json:"first_error"`
	Tokens     int     `json:"tokens"`
	Seconds    float64 `json:"seconds"`
	TTFT       spread  `json:"ttft_ms"`
	Whole      spread  `json:"whole_ms"`
	Late       spread  `json:"late_ms"`
	ITL        spread  `json:"itl_ms"`
	CPUSeconds float64 `json:"cpu_s"`
}

type connection struct {
	net.Conn
	reader *bufio.Reader
}

func runLoad(args []string) error {
	settings, err := readLoadSettings(args)
	if err != nil {
		return err
	}
	l := newLoad(settings)
	cpu := l.run()
	l.result.CPUSeconds = cpu
	return json.NewEncoder(os.Stdout).Encode(l.summary())
}

func newLoad(settings loadSettings) *load {
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\n", settings.target.Path, settings.target.Host)
	if settings.key != "" {
		head += "authorization: Bearer " + settings.key + "\r\n"
	}
	serial := uint64(time.Now().UnixMilli()) % 50_000_000 // what an earlier run sent may still be remembered
	settings.body.conversation = serial
	settings.body.fill()
	l := &load{settings: settings, head: head}
	l.serial.Store(serial)
	return l
}

// run returns the CPU seconds that this process took in the window.
func (l *load) run() float64 {
	s := &l.settings
	began := time.Now()
	l.from = began.Add(s.warmUp)
	l.to = l.from.Add(s.window)
	var running sync.WaitGroup
	if s.besideRate > 0 {
		other := s.beside()
		other.from, other.to = l.from, l.to
		running.Go(func() { other.openLoop(&running) })
		defer func() { l.takeErrors(other) }()
	}
	if s.rate > 0 {
		running.Go(func() { l.openLoop(&running) })
	} else {
		spread := stepOf(s.body.model) * time.Duration(s.body.tokens) // so that answers do not all begin and end together
		for i := range s.connections {
			running.Go(func() { l.closedLoop(spread * time.Duration(i) / time.Duration(s.connections)) })
		}
	}
	time.Sleep(time.Until(l.from))
	fmt.Println("begin")
	before := cpuSeconds()
	time.Sleep(time.Until(l.to))
	fmt.Println("end")
	cpu := cpuSeconds() - before
	l.stopped.Store(true)
	running.Wait()
	return cpu
}

func (l *load) closedLoop(wait time.Duration) {
	time.Sleep(wait)
	var c *connection
	for !l.stopped.Load() {
		c = l.ask(c, time.Time{})
	}
	if c != nil {
		c.Close()
	}
}

func (l *load) openLoop(running *sync.WaitGroup) {
	gap := time.Duration(float64(time.Second) / l.settings.rate)
	slots := make(chan struct{}, l.settings.connections)
	for due := time.Now(); due.Before(l.to); due = due.Add(gap) {
		time.Sleep(time.Until(due))
		slots <- struct{}{} // waiting here shows as lateness
		running.Go(func() {
			l.give(l.ask(l.takeIdle(), due))
			<-slots
		})
	}
}

func (l *load) takeIdle() *connection {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if len(l.idle) == 0 {
		return nil
	}
	c := l.idle[len(l.idle)-1]
	l.idle = l.idle[:len(l.idle)-1]
	return c
}

func (l *load) give(c *connection) {
	if c != nil {
		l.mutex.Lock()
		l.idle = append(l.idle, c)
		l.mutex.Unlock()
	}
}

// ask sends one request and reads its answer; returns the connection when it can be used again. Latencies count from the write; how much
// later than due that was is told apart.
func (l *load) ask(c *connection, due time.Time) *connection {
	body := l.settings.body.build(l.serial.Add(1))
	var err error
	if c == nil {
		var raw net.Conn
		if raw, err = net.Dial("tcp", l.settings.target.Host); err != nil {
			l.count(answer{}, 0, time.Now(), err)
			time.Sleep(10 * time.Millisecond)
			return nil
		}
		c = &connection{raw, bufio.NewReaderSize(raw, 16384)}
	}
	sent := time.Now()
	_ = c.SetDeadline(sent.Add(l.settings.timeout))
	var got answer
	if _, err = c.Write(append(fmt.Appendf(nil, "%scontent-length: %d\r\n\r\n", l.head, len(body)), body...)); err == nil {
		got, err = readAnswer(c.reader, sent, l.settings.body.stream, l.pauses.watch(l.from, l.to, l.countTokens))
	}
	late := time.Duration(0)
	if !due.IsZero() {
		late = sent.Sub(due)
	}
	l.count(got, late, time.Now(), err)
	if err != nil || got.closes {
		c.Close()
		return nil
	}
	return c
}

type answer struct {
	ttft, whole time.Duration
	closes      bool
}

// readAnswer fails when an answer is not a whole one: another status, no finish reason, a stream without its last line.
func readAnswer(reader *bufio.Reader, sent time.Time, stream bool, onTokens func(int)) (answer, error) {
	var got answer
	response, err := readHead(reader)
	if err != nil {
		return got, err
	}
	var tail []byte
	var events tokenCounter
	if err := readBody(reader, response, func(piece []byte) {
		if got.ttft == 0 {
			got.ttft = time.Since(sent)
		}
		if stream {
			onTokens(events.feed(piece))
		}
		if len(piece) > 1024 {
			piece = piece[len(piece)-1024:]
		}
		tail = append(tail, piece...)
		if len(tail) > 4096 {
			tail = append(tail[:0], tail[len(tail)-2048:]...)
		}
	}); err != nil {
		return got, err
	}
	got.whole, got.closes = time.Since(sent), response.closes
	if !bytes.Contains([]byte(response.first), []byte(" 200 ")) {
		return got, fmt.Errorf("%s: %.200s", response.first, tail)
	}
	if stream && !bytes.Contains(tail, []byte("data: [DONE]")) {
		return got, errors.New("the stream ended without [DONE]")
	}
	if !bytes.Contains(tail, []byte(`"length"`)) {
		return got, errors.New("the answer has no finish reason length")
	}
	return got, nil
}

func (l *load) count(got answer, late time.Duration, at time.Time, err error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if at.Before(l.from) || !at.Before(l.to) {
		return
	}
	if err != nil {
		l.result.Errors++
		if l.result.FirstError == "" {
			l.result.FirstError = err.Error()
		}
		return
	}
	l.result.Requests++
	l.first = append(l.first, ms(got.ttft))
	l.whole = append(l.whole, ms(got.whole))
	l.late = append(l.late, ms(late))
}

func (l *load) countTokens(tokens int) {
	if now := time.Now(); tokens > 0 && !now.Before(l.from) && now.Before(l.to) {
		l.tokens.Add(int64(tokens))
	}
}

func (l *load) summary() loadResult {
	l.result.Tokens = l.result.Requests * l.settings.body.tokens
	if l.settings.body.stream {
		l.result.Tokens = int(l.tokens.Load())
	}
	l.result.Seconds = l.settings.window.Seconds()
	l.result.TTFT, l.result.Whole, l.result.Late = spreadOf(l.first), spreadOf(l.whole), spreadOf(l.late)
	l.result.ITL = spreadOf(l.pauses.values)
	return l.result
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}
