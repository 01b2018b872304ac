package main

import (
	"flag"
	"math"
	"os"
	"strings"
)

// Text with the statistics of prose, as far as tokenizing it goes: a word's frequency falls with its rank (Zipf), one word in twelve was never seen
// before (as measured in 220 KB of English documentation after as much of it), and sentences end. A text is its seed's alone.

const (
	usualWords   = 4000
	newWordEvery = 12
	sentence     = 11 // words, about
)

var syllables = []string{
	"re", "con", "ter", "de", "in", "pro", "ing", "er", "al", "tion", "com", "ex", "an", "to", "ma", "si", "lo", "the", "per", "st", "ri", "ne",
	"ble", "ly", "or", "men", "ta", "ver", "un", "ca", "le", "da",
}

type prose struct {
	words []string
	state uint64
}

func newProse(seed uint64) *prose { return &prose{usual, seed*0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D} }

var usual = func() []string {
	words, maker := []string{"the", "of", "and", "to", "in", "is", "for", "that", "with", "as"}, &prose{state: 7}
	for len(words) < usualWords {
		words = append(words, maker.invented())
	}
	return words
}()

// next is xorshift64*.
func (p *prose) next() uint64 {
	p.state ^= p.state >> 12
	p.state ^= p.state << 25
	p.state ^= p.state >> 27
	return p.state * 0x2545F4914F6CDD1D >> 16
}

func (p *prose) invented() string {
	var word strings.Builder
	for range 2 + p.next()%3 {
		word.WriteString(syllables[p.next()%uint64(len(syllables))])
	}
	return word.String()
}

func (p *prose) appendWords(out []byte, bytes int) []byte {
	for end := len(out) + bytes; len(out) < end; {
		if p.next()%newWordEvery == 0 {
			out = append(out, p.invented()...)
			out = append(out, p.invented()...)
		} else {
			rank := math.Pow(usualWords, float64(p.next()%65536)/65536) - 1
			out = append(out, p.words[int(rank)]...)
		}
		if p.next()%sentence == 0 {
			out = append(out, '.')
		}
		out = append(out, ' ')
	}
	return out
}

// runProse prints prose to make a vocabulary of. No prompt has this seed.
func runProse(args []string) error {
	flags := flag.NewFlagSet("prose", flag.ExitOnError)
	bytes := flags.Int("bytes", 1_000_000, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	_, err := os.Stdout.Write(newProse(math.MaxUint64).appendWords(nil, *bytes))
	return err
}
