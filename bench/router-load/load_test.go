package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

func backendAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go serveBackend(listener, &pages{models: modelList([]string{"mock"}), metrics: metricsPage()})
	return listener.Addr().String()
}

func loaded(t *testing.T, settings loadSettings) loadResult {
	t.Helper()
	settings.target = &url.URL{Scheme: "http", Host: backendAddress(t), Path: "/v1/chat/completions"}
	settings.warmUp, settings.window, settings.timeout = 50*time.Millisecond, 200*time.Millisecond, 5*time.Second
	l := newLoad(settings)
	l.run()
	return l.summary()
}

func TestEveryKindOfLoadIsAnsweredInFullByTheMockBackend(t *testing.T) {
	for name, settings := range map[string]loadSettings{
		"closed":   {connections: 4, body: requestShape{model: "mock-0ms", tokens: 8}},
		"streams":  {connections: 4, body: requestShape{model: "mock-1ms", tokens: 8, stream: true}},
		"open":     {connections: 64, rate: 200, body: requestShape{model: "mock-0ms", tokens: 8, stream: true}},
		"long ids": {connections: 2, body: requestShape{model: "mock-0ms", tokens: 2, ids: true, promptBytes: 100_000}},
	} {
		t.Run(name, func(t *testing.T) {
			got := loaded(t, settings)
			// Tokens are counted as they come: of requests that the window cuts, some.
			perfect, slack := got.Requests*settings.body.tokens, settings.connections*settings.body.tokens
			if got.Requests == 0 || got.Errors != 0 || got.Tokens < perfect-slack || got.Tokens > perfect+slack {
				t.Fatalf("%+v", got)
			}
			if got.TTFT.P50 <= 0 || got.Whole.P50 < got.TTFT.P50 {
				t.Fatalf("a first token after the last: %+v", got)
			}
		})
	}
}

func TestAnAnswerThatIsNotWholeIsAnError(t *testing.T) {
	for text, fault := range map[string]string{
		"HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\n{\"reason\":\"length\"}":                          "",
		"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}":                                                "no finish reason",
		"HTTP/1.1 429 No\r\ncontent-length: 8\r\n\r\n\"length\"":                                        "429",
		"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{}":                                               "unexpected EOF",
		"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n\"length\"\r\n":                      "EOF",
		"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n{}":                                         "length of a body",
		"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n\"length\"\r\n0\r\n\r\nHTTP/1.1 200": "",
	} {
		_, err := readAnswer(bufio.NewReader(strings.NewReader(text)), time.Now(), false, func(int) {})
		if (err == nil) != (fault == "") || (err != nil && !strings.Contains(err.Error(), fault)) {
			t.Errorf("%q: %v, not %q", text, err, fault)
		}
	}
	if _, err := readAnswer(bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n\"length\"")), time.Now(), true, func(int) {}); err == nil {
		t.Error("a stream without [DONE] passed")
	}
}

func TestPromptsHaveTheirSizeAndShareNoPassage(t *testing.T) {
	shape := requestShape{model: "m", tokens: 1, promptBytes: 220_000}
	shape.fill()
	one, two := shape.build(1), shape.build(2)
	if len(one) < 219_000 || len(one) > 221_000 {
		t.Fatalf("%d bytes", len(one))
	}
	at := bytes.Index(one, []byte(`"content":"`)) + len(`"content":"`)
	for ; at+512 < len(one); at += 512 {
		if bytes.Contains(two, one[at:at+512]) {
			t.Fatalf("two prompts have the same 512 bytes at %d", at)
		}
	}
}

func TestTurnsOfAConversationDifferInTheirLastPassageAlone(t *testing.T) {
	shape := requestShape{model: "m", tokens: 1, promptBytes: 220_000, again: true, conversation: 3}
	shape.fill()
	one, two := shape.build(1), shape.build(2)
	same := 0
	for same < min(len(one), len(two)) && one[same] == two[same] {
		same++
	}
	if same < 219_000 || same > len(one)-200 || len(one) < 219_000 || len(one) > 221_000 {
		t.Fatalf("%d of %d bytes are the same", same, len(one))
	}
}

func TestOneWordInTwelveIsNewAndTheOthersAreNot(t *testing.T) {
	known := map[string]bool{}
	for _, word := range strings.Fields(string(newProse(1).appendWords(nil, 220_000))) {
		known[strings.Trim(word, ".")] = true
	}
	fresh, words := 0, strings.Fields(string(newProse(2).appendWords(nil, 220_000)))
	for _, word := range words {
		if !known[strings.Trim(word, ".")] {
			fresh++
		}
	}
	if share := float64(fresh) / float64(len(words)); share < 0.06 || share > 0.14 {
		t.Fatalf("%.3f of %d words are new", share, len(words))
	}
}

func TestABodyIsReadHoweverARouterRewroteIt(t *testing.T) {
	for _, body := range []string{
		`{"model":"mock-1ms","max_tokens":3,"stream":true,"stream_options":{"include_usage":true}}`,
		`{"stream_options": {"include_usage": true}, "stream": true, "max_tokens": 3, "model": "mock-1ms"}`,
		`{"model":"mock-1ms","max_completion_tokens":3,"stream":true,"stream_options":{"include_usage":true}}`,
	} {
		if got := readAsked([]byte(body)); got != (asked{"mock-1ms", 3, true, true}) {
			t.Errorf("%s: %+v", body, got)
		}
	}
}

func TestOnlyGenerationIsAnsweredAndTheConnectionGoesOn(t *testing.T) {
	connection, err := net.Dial("tcp", backendAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	reader, body := bufio.NewReader(connection), `{"model":"mock-10ms","max_tokens":1,"stream":false}`
	for path, status := range map[string]string{"/v1/chat/completions/render": "404", "/v1/chat/completions": "200"} {
		if _, err := fmt.Fprintf(connection, "POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s", path, len(body), body); err != nil {
			t.Fatal(err)
		}
		found, err := readHead(reader)
		if err != nil || !strings.Contains(found.first, status) {
			t.Fatalf("%s: %q, %v", path, found.first, err)
		}
		if err := readBody(reader, found, func([]byte) {}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPaceIsReadFromAModelsName(t *testing.T) {
	for name, want := range map[string]time.Duration{"mock-10ms": 10 * time.Millisecond, "mock-0ms": 0, "other": 0, "mock--1s": 0} {
		if got := stepOf(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestTokensAreCountedHoweverTheStreamIsCut(t *testing.T) {
	stream := appendEvent(nil, "m", `{"role":"assistant","content":""}`, "null")
	for range 5 {
		stream = appendEvent(stream, "m", `{"content":" x"}`, "null")
	}
	stream = appendEvent(stream, "m", `{}`, `"length"`)
	for size := 1; size < len(stream); size++ {
		var counter tokenCounter
		count := 0
		for rest := stream; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			count += counter.feed(rest[:min(size, len(rest))])
		}
		if count != 5 {
			t.Fatalf("%d tokens in pieces of %d", count, size)
		}
	}
}

func TestPercentilesAreOfWhatWasSeen(t *testing.T) {
	values := make([]float64, 101)
	for i := range values {
		values[100-i] = float64(i)
	}
	if got := spreadOf(values); got != (spread{50, 99, 100}) {
		t.Fatalf("%+v", got)
	}
}

func TestPausesAreBetweenAStreamsOwnTokensInTheWindow(t *testing.T) {
	var seen pauses
	told := 0
	now := time.Now()
	inside := seen.watch(now.Add(-time.Hour), now.Add(time.Hour), func(tokens int) { told += tokens })
	for _, tokens := range []int{1, 0, 2, 1} {
		inside(tokens)
	}
	before := seen.watch(now.Add(time.Hour), now.Add(2*time.Hour), func(tokens int) { told += tokens })
	before(1)
	before(1)
	if len(seen.values) != 2 || told != 6 {
		t.Fatalf("%d pauses of 2, %d tokens of 6", len(seen.values), told)
	}
}

func TestLongPromptsComeBesideStreamsWhoseFiguresStayTheirOwn(t *testing.T) {
	settings := loadSettings{connections: 2, body: requestShape{model: "mock-1ms", tokens: 8, stream: true}}
	settings.besideRate, settings.besideBytes, settings.besideModel = 50, 100_000, "mock-0ms"
	settings.target = &url.URL{}
	got := loaded(t, settings)
	if got.Errors > 0 || got.Requests == 0 || got.ITL.P50 < 0.5 {
		t.Fatalf("%d errors (%s), %d requests, pauses of %.2f ms", got.Errors, got.FirstError, got.Requests, got.ITL.P50)
	}
	failed, whole := newLoad(settings), newLoad(settings)
	failed.result.Errors, failed.result.FirstError = 2, "refused"
	if whole.takeErrors(failed); whole.result.Errors != 2 || whole.result.FirstError != "refused" {
		t.Fatal("the long prompts failed, and nothing says so")
	}
}
