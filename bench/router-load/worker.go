package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
)

// A mock worker speaks the real Session, over gRPC's framing on the standard library's HTTP/2: what it lacks is only the engine.

const (
	capacityTokens  = 1 << 30 // never what bounds
	blockSize       = 16
	maxMessageBytes = 64 << 20
)

type artifact struct {
	name    string
	content []byte
}

func (a artifact) sha() string {
	sum := sha256.Sum256(a.content)
	return hex.EncodeToString(sum[:])
}

func (a artifact) message() message {
	var m message
	m.bytes(1, []byte(a.name))
	m.bytes(2, []byte(a.sha()))
	m.number(3, uint64(len(a.content)))
	return m
}

type mockWorker struct {
	model     string
	id        string
	artifacts []artifact // tokenizer, chat template
}

func runWorker(args []string) error {
	flags := flag.NewFlagSet("worker", flag.ExitOnError)
	serve := flags.String("serve", "", "MODEL=ADDRESS, with commas")
	tokenizer := flags.String("tokenizer", "", "a tokenizer.json")
	others := flags.String("tokenizer-of", "", "MODEL=PATH of another one, with commas")
	template := flags.String("template", "", "a chat template")
	if err := flags.Parse(args); err != nil {
		return err
	}
	paths := map[string]string{}
	for _, one := range strings.Split(*others, ",") {
		model, path, _ := strings.Cut(one, "=")
		paths[model] = path
	}
	chatTemplate, err := os.ReadFile(*template)
	if err != nil {
		return err
	}
	for _, one := range strings.Split(*serve, ",") {
		model, address, _ := strings.Cut(one, "=")
		path := *tokenizer
		if other, own := paths[model]; own {
			path = other
		}
		vocabulary, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		artifacts := []artifact{{"tokenizer.json", vocabulary}, {"chat_template.jinja", chatTemplate}}
		server := newServer(&mockWorker{model: model, id: one, artifacts: artifacts})
		go func() { log.Print(server.Serve(listener)) }()
	}
	fmt.Println("ready")
	untilTold()
	return nil
}

func newServer(worker *mockWorker) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("/pagoda.worker.v1.Worker/Describe", unary(worker.describe))
	mux.HandleFunc("/pagoda.worker.v1.Worker/FetchArtifact", unary(worker.fetch))
	mux.HandleFunc("/pagoda.worker.v1.Worker/Session", worker.session)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{Handler: mux, Protocols: protocols}
}

// unary answers one message by one; FetchArtifact's stream of chunks is one chunk here.
func unary(call func(request []byte) (message, error)) http.HandlerFunc {
	return func(writer http.ResponseWriter, request *http.Request) {
		openCall(writer)
		given, err := readMessage(request.Body, nil)
		var answer message
		if err == nil {
			answer, err = call(given)
		}
		if err != nil {
			closeCall(writer, 5, err.Error())
			return
		}
		if _, err := writer.Write(framed(answer)); err == nil {
			closeCall(writer, 0, "")
		}
	}
}

func openCall(writer http.ResponseWriter) {
	writer.Header().Set("Content-Type", "application/grpc")
	writer.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	writer.WriteHeader(http.StatusOK)
}

func closeCall(writer http.ResponseWriter, status int, text string) {
	writer.Header().Set("Grpc-Status", fmt.Sprint(status))
	writer.Header().Set("Grpc-Message", text)
}

func framed(m message) []byte {
	out := make([]byte, 5, 5+len(m))
	binary.BigEndian.PutUint32(out[1:], uint32(len(m)))
	return append(out, m...)
}

func readMessage(reader io.Reader, buffer []byte) ([]byte, error) {
	var prefix [5]byte
	if _, err := io.ReadFull(reader, prefix[:]); err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint32(prefix[1:]))
	if prefix[0] != 0 || length > maxMessageBytes {
		return nil, errWire
	}
	if cap(buffer) < length {
		buffer = make([]byte, length)
	}
	buffer = buffer[:length]
	_, err := io.ReadFull(reader, buffer)
	return buffer, err
}

func (w *mockWorker) describe([]byte) (message, error) {
	var model, answer message
	model.bytes(1, []byte(w.model))
	model.bytes(3, []byte("MockForCausalLM"))
	model.bytes(4, []byte("fp32"))
	model.number(5, 1<<20)
	model.number(6, 1<<20)
	model.bytes(9, w.artifacts[0].message())
	model.bytes(10, w.artifacts[1].message())
	model.bytes(11, []byte("{}"))
	model.number(12, blockSize)
	model.number(13, capacityTokens)
	model.number(14, 1)
	model.number(15, 4096)
	model.number(16, 8)
	model.double(19, 1e6)
	model.double(20, 1e5)
	answer.bytes(1, []byte(w.id))
	answer.bytes(2, []byte("mock"))
	answer.number(3, 1)
	answer.bytes(4, model)
	answer.bytes(5, []byte("cpu"))
	return answer, nil
}

func (w *mockWorker) fetch(request []byte) (message, error) {
	var wanted string
	if err := fields(request, func(field int, _ uint64, content []byte) { wanted = string(content) }); err != nil {
		return nil, err
	}
	for _, one := range w.artifacts {
		if one.sha() == wanted {
			var chunk message
			chunk.bytes(1, one.content)
			return chunk, nil
		}
	}
	return nil, fmt.Errorf("no artifact %s", wanted)
}
