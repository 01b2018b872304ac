package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// runBackend serves an OpenAI API whose model does no work: the first token at once, then one each step, as the model's name says.
func runBackend(args []string) error {
	flags := flag.NewFlagSet("backend", flag.ExitOnError)
	addresses := flags.String("listen", "", "addresses, with commas")
	models := flags.String("models", "mock", "names that it lists, with commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	told := &pages{models: modelList(strings.Split(*models, ",")), metrics: metricsPage()}
	for _, address := range strings.Split(*addresses, ",") {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		go serveBackend(listener, told)
	}
	fmt.Println("ready")
	untilTold()
	return nil
}

func untilTold() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)
	<-told
}

func serveBackend(listener net.Listener, told *pages) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer connection.Close()
			if err := answerAll(connection, told); err != nil {
				log.Printf("backend: %v", err)
			}
		}()
	}
}

func answerAll(connection net.Conn, told *pages) error {
	reader := bufio.NewReaderSize(connection, 32768)
	var body []byte
	for {
		request, err := readHead(reader)
		if err != nil {
			return nil // a client that leaves is no fault
		}
		body = body[:0]
		if request.chunked || request.length > 0 {
			if err := readBody(reader, request, func(piece []byte) { body = append(body, piece...) }); err != nil {
				return nil
			}
		}
		if strings.HasPrefix(request.first, "GET ") {
			err = writeWhole(connection, told.of(request.first))
		} else if !isGeneration(request.first) {
			err = writeNotFound(connection)
		} else if of := readAsked(body); of.stream {
			err = writeStream(connection, of)
		} else {
			time.Sleep(stepOf(of.model) * time.Duration(of.maxTokens-1))
			err = writeWhole(connection, wholeAnswer(of))
		}
		if err != nil {
			return nil
		}
	}
}

// pages are what is read with GET: a router asks for them again and again.
type pages struct{ models, metrics []byte }

func (told *pages) of(first string) []byte {
	if strings.HasPrefix(first, "GET /metrics ") {
		return told.metrics
	}
	return told.models
}

func modelList(names []string) []byte {
	entries := make([]string, len(names))
	for i, name := range names {
		entries[i] = fmt.Sprintf(`{"id":%q,"object":"model"}`, name)
	}
	return fmt.Appendf(nil, `{"object":"list","data":[%s],"model_path":"mock","is_generation":true}`, strings.Join(entries, ","))
}

// metricsPage has as many lines as a vLLM's, so that looking at it costs what it costs there.
func metricsPage() []byte {
	var page bytes.Buffer
	const labels = `engine="0",model_name="mock"`
	for _, gauge := range []string{"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"} {
		fmt.Fprintf(&page, "# HELP vllm:%s Of a mock.\n# TYPE vllm:%s gauge\nvllm:%s{%s} 0.0\n", gauge, gauge, gauge, labels)
	}
	fmt.Fprintf(&page, "vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"100000\"} 1.0\n")
	for i := range 20 {
		fmt.Fprintf(&page, "# HELP vllm:histogram_%d_seconds Of a mock.\n# TYPE vllm:histogram_%d_seconds histogram\n", i, i)
		for bucket := range 24 {
			fmt.Fprintf(&page, "vllm:histogram_%d_seconds_bucket{%s,le=\"%d.0\"} 0.0\n", i, labels, bucket)
		}
		fmt.Fprintf(&page, "vllm:histogram_%d_seconds_count{%s} 0.0\nvllm:histogram_%d_seconds_sum{%s} 0.0\n", i, labels, i, labels)
	}
	return page.Bytes()
}

// isGeneration: vllm-router first asks the backend for /v1/chat/completions/render, and goes on without where there is none.
func isGeneration(first string) bool {
	_, rest, _ := strings.Cut(first, " ")
	path, _, _ := strings.Cut(rest, " ")
	return path == "/v1/chat/completions" || path == "/v1/completions"
}

func writeNotFound(connection net.Conn) error {
	body := `{"detail":"Not Found"}`
	_, err := fmt.Fprintf(connection, "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	return err
}

func writeWhole(connection net.Conn, body []byte) error {
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n", len(body))
	_, err := connection.Write(append(answer, body...))
	return err
}

func wholeAnswer(of asked) []byte {
	var text bytes.Buffer
	for i := range of.maxTokens {
		text.WriteString(words[i%len(words)])
	}
	return fmt.Appendf(nil, `{"id":"chatcmpl-mock","object":"chat.completion","created":1,"model":%q,"choices":[{"index":0,"message":{"role":"assistant",`+
		`"content":%q},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}}`,
		of.model, text.String(), of.maxTokens, of.maxTokens+9)
}

// writeStream sends one chunk a token, each due at its own time, so that a late write does not delay the next.
func writeStream(connection net.Conn, of asked) error {
	step, began := stepOf(of.model), time.Now()
	out := []byte("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n")
	out = appendEvent(out, of.model, `{"role":"assistant","content":""}`, "null")
	for i := range of.maxTokens {
		if wait := time.Until(began.Add(time.Duration(i) * step)); wait > 0 {
			time.Sleep(wait)
		}
		out = appendEvent(out, of.model, `{"content":"`+words[i%len(words)]+`"}`, "null")
		if i == of.maxTokens-1 {
			break
		}
		if _, err := connection.Write(out); err != nil {
			return err
		}
		out = out[:0]
	}
	out = appendEvent(out, of.model, `{}`, `"length"`)
	if of.usage {
		out = appendChunk(out, fmt.Sprintf(`data: {"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1,"model":%q,"choices":[],`+
			`"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}}`, of.model, of.maxTokens, of.maxTokens+9))
	}
	out = appendChunk(out, "data: [DONE]")
	_, err := connection.Write(append(out, "0\r\n\r\n"...))
	return err
}

func appendEvent(out []byte, model, delta, finish string) []byte {
	return appendChunk(out, `data: {"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1,"model":"`+model+`","choices":[{"index":0,"delta":`+
		delta+`,"logprobs":null,"finish_reason":`+finish+`}]}`)
}

func appendChunk(out []byte, event string) []byte {
	return fmt.Appendf(out, "%x\r\n%s\n\n\r\n", len(event)+2, event)
}
