package main

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// One Session: what the router sends is read by the handler's goroutine, an engine without arithmetic answers from its own.

var epochs atomic.Uint64

type sequence struct {
	id, produced, wanted, prompt, reserved uint64
	receivedUs, firstUs, cancelled         uint64
}

type session struct {
	worker  *mockWorker
	writer  http.ResponseWriter
	epoch   uint64
	mutex   sync.Mutex
	arrived []*sequence // not in a step yet
	left    map[uint64]bool
	pongs   []message
	wake    chan struct{}

	running []*sequence // the engine goroutine's alone, as all below
	step    uint64
	granted uint64
	grants  uint64
	started message
	rows    rowLists
}

type rowLists struct{ requests, sequences, counts, ids []uint64 }

func (w *mockWorker) session(writer http.ResponseWriter, request *http.Request) {
	openCall(writer)
	s := &session{worker: w, writer: writer, epoch: epochs.Add(1), left: map[uint64]bool{}, wake: make(chan struct{}, 1), granted: capacityTokens}
	first, err := readMessage(request.Body, nil)
	if err != nil {
		return
	}
	if fields(first, func(int, uint64, []byte) {}) != nil || s.send(1, s.welcome()) != nil {
		return
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		s.engine(done)
	}()
	s.read(request.Body)
	close(done)
	<-ended
}

func (s *session) read(body io.Reader) {
	var buffer []byte
	for {
		given, err := readMessage(body, buffer)
		if err != nil {
			return
		}
		buffer = given
		if fields(given, s.hear) != nil {
			return
		}
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

func (s *session) hear(kind int, number uint64, content []byte) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.note(kind, number, content)
}

// note takes one field of ToWorker: its message, or a whole one that came along. Acknowledgements need no answer.
func (s *session) note(kind int, _ uint64, content []byte) {
	switch kind {
	case 6:
		_ = fields(content, s.note)
	case 2:
		one := &sequence{receivedUs: nowUs()}
		_ = fields(content, func(field int, number uint64, packed []byte) {
			switch field {
			case 1:
				one.id = number
			case 4:
				one.prompt = uint64(countPacked(packed))
			case 7:
				one.wanted = number
			case 22:
				one.reserved = number
			case 23:
				one.prompt = uint64(len(packed) / 4)
			}
		})
		s.arrived = append(s.arrived, one)
	case 3:
		_ = fields(content, func(field int, number uint64, _ []byte) {
			if field == 1 {
				s.left[number] = true
			}
		})
	case 4:
		var pong message
		_ = fields(content, func(_ int, number uint64, _ []byte) { pong.number(1, number) })
		pong.number(2, nowUs())
		s.pongs = append(s.pongs, pong)
	}
}

// engine runs a step for whoever arrived at once (their prefill), and one for all running each period, as long as any runs.
func (s *session) engine(done <-chan struct{}) {
	period := stepOf(s.worker.model)
	timer := time.NewTimer(time.Hour)
	var due time.Time
	for {
		select {
		case <-done:
			return
		case <-s.wake:
		case <-timer.C:
		}
		pongs, newcomers := s.take()
		for _, pong := range pongs {
			pong.number(3, nowUs())
			if s.send(4, pong) != nil {
				return
			}
		}
		now := time.Now()
		decodes := len(s.running) > 0 && !now.Before(due)
		if decodes || len(newcomers) > 0 {
			if s.run(newcomers, decodes) != nil {
				return
			}
		}
		if len(s.running) > 0 {
			if decodes || due.IsZero() || due.Before(now.Add(-period)) {
				due = now.Add(period)
			}
			timer.Reset(time.Until(due))
		} else {
			due = time.Time{}
		}
	}
}

func (s *session) take() (pongs []message, newcomers []*sequence) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	pongs, newcomers, s.pongs, s.arrived = s.pongs, s.arrived, nil, nil
	for _, one := range append(s.running, newcomers...) {
		if s.left[one.id] {
			one.cancelled = 1
		}
	}
	clear(s.left)
	return
}

// run is one step: one frame. Without a period all tokens come in it.
func (s *session) run(newcomers []*sequence, decodes bool) error {
	var finishes message
	s.started, s.rows = s.started[:0], rowLists{s.rows.requests[:0], s.rows.sequences[:0], s.rows.counts[:0], s.rows.ids[:0]}
	s.step++
	now, refunded := nowUs(), uint64(0)
	kept := s.running[:0]
	var ended []*sequence
	old := len(s.running)
	for i, one := range append(s.running, newcomers...) {
		if i >= old {
			one.firstUs = now
			var started message
			started.number(1, one.id)
			started.number(3, now-one.receivedUs)
			s.started.bytes(12, started)
		}
		if (i >= old || decodes) && one.cancelled == 0 {
			s.emit(one)
		}
		if one.produced == one.wanted || one.cancelled == 1 {
			ended = append(ended, one)
		} else {
			kept = append(kept, one)
		}
	}
	s.running = kept
	for _, one := range ended {
		refunded += one.reserved
		finishes.bytes(8, finish(one, now, uint64(len(kept)+len(ended))))
	}
	return s.send(2, s.frame(now, finishes, refunded))
}

func (s *session) emit(one *sequence) {
	count := uint64(1)
	if stepOf(s.worker.model) == 0 {
		count = one.wanted
	}
	s.rows.requests = append(s.rows.requests, one.id)
	s.rows.sequences = append(s.rows.sequences, 0)
	s.rows.counts = append(s.rows.counts, count)
	for range count {
		s.rows.ids = append(s.rows.ids, 100+one.produced%16)
		one.produced++
	}
}

func (s *session) frame(nowUs uint64, finishes message, refunded uint64) message {
	var frame message
	frame.number(1, s.step)
	frame.number(2, nowUs)
	frame.packed(3, s.rows.requests)
	frame.packed(4, s.rows.sequences)
	frame.packed(5, s.rows.counts)
	frame.packed(6, s.rows.ids)
	frame = append(frame, finishes...)
	frame.bytes(9, s.state())
	if refunded > 0 {
		s.granted += refunded
		frame.bytes(10, s.grant())
	}
	return append(frame, s.started...)
}

func finish(one *sequence, now, batch uint64) message {
	var usage, timings, finish message
	usage.number(1, one.prompt)
	usage.number(3, one.produced)
	for field, stamp := range []uint64{1: one.receivedUs, 2: one.firstUs, 3: one.firstUs, 4: now, 8: one.receivedUs, 9: one.receivedUs, 10: one.firstUs, 11: now} {
		timings.number(field, stamp)
	}
	timings.number(6, one.produced)
	timings.packed(7, []uint64{batch})
	timings.packed(12, []uint64{one.produced})
	finish.number(1, one.id)
	finish.number(3, 2+one.cancelled) // FINISH_LENGTH, FINISH_CANCELLED
	finish.bytes(6, usage)
	finish.bytes(7, timings)
	return finish
}

func (s *session) welcome() message {
	var welcome message
	welcome.number(1, s.epoch)
	welcome.bytes(2, []byte(s.worker.id))
	welcome.bytes(3, s.state())
	welcome.bytes(4, s.grant())
	welcome.flag(5, true)
	welcome.flag(6, true)
	return welcome
}

// state is told with each frame, as by a worker whose free blocks change with each step.
func (s *session) state() message {
	var state message
	state.number(1, uint64(len(s.running)))
	state.number(4, capacityTokens)
	state.number(5, capacityTokens-s.step%1024)
	state.double(6, 1e6)
	state.double(7, 1)
	state.flag(9, true)
	return state
}

func (s *session) grant() message {
	s.grants++
	var grant message
	grant.bytes(1, []byte(s.worker.model))
	grant.number(3, s.epoch)
	grant.number(4, s.grants)
	grant.number(5, s.granted)
	return grant
}

func (s *session) send(kind int, content message) error {
	var up message
	up.bytes(kind, content)
	if _, err := s.writer.Write(framed(up)); err != nil {
		return err
	}
	return http.NewResponseController(s.writer).Flush()
}
