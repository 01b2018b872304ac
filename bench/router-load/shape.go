package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"
)

// requestShape is what each request asks. Prompts differ from their first word on, so that no cache of prefixes or passages knows them; or, where
// they are `again`, in their last passage alone, as the turns of one long conversation do.
type requestShape struct {
	model        string
	tokens       int
	stream       bool
	promptBytes  int
	ids          bool
	again        bool
	conversation uint64 // the same for all that are `again`
	filler       string // of ids, after what is their own
	passages     int    // of both
	beginning    []byte // of text that is `again`
}

const (
	fillsPerPassage = 35
	markBytes       = 9 // about, of what tells a passage from others
	turnBytes       = 500
)

// fill is called once, before requests are built.
func (r *requestShape) fill() {
	text := ",101,57,88,140"
	r.filler = strings.Repeat(text, min(fillsPerPassage, max(1, r.promptBytes/len(text))))
	r.passages = max(1, r.promptBytes/(len(r.filler)+markBytes))
	if r.again {
		r.beginning = newProse(r.conversation).appendWords(fmt.Appendf(nil, "%08d ", r.conversation), r.promptBytes-turnBytes)
	}
}

func (r *requestShape) build(serial uint64) []byte {
	out := fmt.Appendf(nil, `{"model":%q,"max_tokens":%d,"temperature":0,`, r.model, r.tokens)
	if r.stream {
		out = append(out, `"stream":true,"stream_options":{"include_usage":true},`...)
	}
	if r.ids {
		out = append(out, `"prompt":[`...)
		for range r.passages {
			out = append(fmt.Appendf(out, `%d,%d`, 10+serial%190, 10+serial/190%190), r.filler...)
			out = append(out, ',')
		}
		return append(out, `1]}`...)
	}
	out = append(out, `"messages":[{"role":"user","content":"`...)
	own := r.promptBytes - len(r.beginning)
	out = newProse(serial).appendWords(fmt.Appendf(append(out, r.beginning...), "%08d ", serial), own-markBytes)
	return append(out, `"}]}`...)
}

// tokenCounter counts events with text in a stream's pieces: each mock token is one event, and no router joins events.
type tokenCounter struct {
	matched int // bytes of the mark that the last piece ended in
	opened  bool
}

const tokenMark = `"content":"`

func (c *tokenCounter) feed(piece []byte) int {
	count := 0
	for len(piece) > 0 {
		if c.opened {
			if c.opened = false; piece[0] != '"' {
				count++
			}
		}
		if c.matched == 0 {
			at := bytes.Index(piece, []byte(tokenMark))
			if at < 0 {
				c.matched = endsIn(piece)
				return count
			}
			piece, c.opened = piece[at+len(tokenMark):], true
			continue
		}
		if piece[0] == tokenMark[c.matched] {
			if c.matched++; c.matched == len(tokenMark) {
				c.matched, c.opened = 0, true
			}
			piece = piece[1:]
		} else {
			c.matched = 0
		}
	}
	return count
}

// endsIn is how much of the mark a piece ends in.
func endsIn(piece []byte) int {
	for n := min(len(piece), len(tokenMark)-1); n > 0; n-- {
		if bytes.HasSuffix(piece, []byte(tokenMark[:n])) {
			return n
		}
	}
	return 0
}

type spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	slices.Sort(values)
	last := len(values) - 1
	return spread{values[last/2], values[(last*99+99)/100], values[last]}
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
