package main

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// A mock model is named after its speed, so that one process serves several and every router passes it on: mock-10ms, mock-1ms, mock-0ms, and
// mock-0ms-words, whose vocabulary has whole words.
func stepOf(model string) time.Duration {
	_, pace, _ := strings.Cut(model, "-")
	pace, _, _ = strings.Cut(pace, "-")
	step, err := time.ParseDuration(pace)
	if err != nil || step < 0 {
		return 0
	}
	return step
}

// Words of the answer, in turn: a constant token makes one peer (LiteLLM) end the stream as "repeating the same chunk".
var words = []string{" one", " two", " three", " four", " five", " six", " seven", " eight"}

// asked is what a mock needs of a request body. Routers rewrite bodies, so fields are found wherever they lie; prompts of the benchmark
// never contain their names.
type asked struct {
	model     string
	maxTokens int
	stream    bool
	usage     bool
}

func readAsked(body []byte) asked {
	found := asked{maxTokens: 16}
	for _, name := range []string{`"max_tokens"`, `"max_completion_tokens"`} { // sglang-router writes the newer one instead
		if n, err := strconv.Atoi(string(field(body, name))); err == nil && n > 0 {
			found.maxTokens = n
		}
	}
	found.model = strings.Trim(string(field(body, `"model"`)), `"`)
	found.stream = string(field(body, `"stream"`)) == "true"
	found.usage = string(field(body, `"include_usage"`)) == "true"
	return found
}

// field is the scalar after a name and its colon, up to the next comma or brace.
func field(body []byte, name string) []byte {
	at := bytes.Index(body, []byte(name))
	if at < 0 {
		return nil
	}
	rest := bytes.TrimLeft(body[at+len(name):], " :")
	if end := bytes.IndexAny(rest, ",}"); end >= 0 {
		rest = rest[:end]
	}
	return bytes.TrimSpace(rest)
}
