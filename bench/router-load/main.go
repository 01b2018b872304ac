// Command router-load is the compiled half of `make bench-router`: a load generator, a mock OpenAI backend and a mock Pagoda worker.
//
// One program, standard library alone: load says what it measured as one JSON object on stdout, prose is text like the prompts'; bench/src/
// pagoda_bench/router_load starts and pins them. Compiled, so that the rig is not what is measured.
package main

import (
	"fmt"
	"os"
)

func main() {
	commands := map[string]func([]string) error{"load": runLoad, "backend": runBackend, "worker": runWorker, "prose": runProse}
	if len(os.Args) > 1 {
		if command, known := commands[os.Args[1]]; known {
			if err := command(os.Args[2:]); err != nil {
				fmt.Fprintf(os.Stderr, "router-load %s: %v\n", os.Args[1], err)
				os.Exit(1)
			}
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: router-load load|backend|worker|prose [flags]")
	os.Exit(2)
}
