package main

import (
	"flag"
	"fmt"
	"net/url"
	"time"
)

type loadSettings struct {
	target      *url.URL
	key         string
	body        requestShape
	connections int
	rate        float64 // requests a second; 0: closed loop
	warmUp      time.Duration
	window      time.Duration
	timeout     time.Duration
	besideRate  float64 // of another load, of long prompts, while this one is measured; 0: none
	besideBytes int
	besideModel string
}

func readLoadSettings(args []string) (loadSettings, error) {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	target := flags.String("url", "", "with the path")
	var s loadSettings
	flags.StringVar(&s.key, "key", "", "bearer key")
	flags.StringVar(&s.body.model, "model", "mock-0ms", "")
	flags.IntVar(&s.body.tokens, "tokens", 8, "of each answer")
	flags.BoolVar(&s.body.stream, "stream", false, "")
	flags.IntVar(&s.body.promptBytes, "prompt-bytes", 100, "")
	flags.BoolVar(&s.body.ids, "ids", false, "the prompt as token ids, for /v1/completions")
	flags.BoolVar(&s.body.again, "again", false, "prompts that begin alike, but for their last 500 bytes")
	flags.IntVar(&s.connections, "connections", 64, "of a closed loop; the most of an open one")
	flags.Float64Var(&s.rate, "rate", 0, "open loop: requests a second")
	flags.Float64Var(&s.besideRate, "beside-rate", 0, "another open loop, of long prompts, beside the one that is measured")
	flags.IntVar(&s.besideBytes, "beside-bytes", 220_000, "of each of its prompts")
	flags.StringVar(&s.besideModel, "beside-model", "mock-0ms", "")
	flags.DurationVar(&s.warmUp, "warm-up", time.Second, "")
	flags.DurationVar(&s.window, "window", 2*time.Second, "")
	flags.DurationVar(&s.timeout, "timeout", 10*time.Second, "of one request")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	var err error
	if s.target, err = url.Parse(*target); err != nil || s.target.Host == "" {
		return s, fmt.Errorf("-url %q is no URL", *target)
	}
	return s, nil
}
