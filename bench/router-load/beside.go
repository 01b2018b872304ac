package main

import (
	"sync"
	"time"
)

// What other requests do to streams: the pauses between a stream's tokens are measured, while a second, open load asks for something else.

// pauses are of all streams, between pieces with tokens that came in the window. Milliseconds.
type pauses struct {
	mutex  sync.Mutex
	values []float64
}

// watch returns what hears of one stream's tokens, and tells each of them to onTokens.
func (p *pauses) watch(from, to time.Time, onTokens func(int)) func(int) {
	var last time.Time
	return func(tokens int) {
		onTokens(tokens)
		if tokens == 0 {
			return
		}
		now := time.Now()
		if !last.IsZero() && !now.Before(from) && now.Before(to) {
			p.mutex.Lock()
			p.values = append(p.values, ms(now.Sub(last)))
			p.mutex.Unlock()
		}
		last = now
	}
}

// beside is the second load: long prompts at a constant rate, until the first one ends. Its own figures are dropped, but for its errors.
func (s loadSettings) beside() *load {
	other := s
	other.rate, other.besideRate = s.besideRate, 0
	other.body = requestShape{model: s.besideModel, tokens: 8, stream: true, promptBytes: s.besideBytes}
	return newLoad(other)
}

// takeErrors makes failures of the other load this one's: a measurement beside requests that failed is none.
func (l *load) takeErrors(other *load) {
	l.result.Errors += other.result.Errors
	if l.result.FirstError == "" {
		l.result.FirstError = other.result.FirstError
	}
}
