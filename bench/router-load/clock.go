package main

import (
	"syscall"
	"time"
	"unsafe"
)

// Workers on the router's host stamp by CLOCK_MONOTONIC, which package time does not tell; read once, then counted on.
var (
	monotonicBegan = readMonotonic()
	began          = time.Now()
)

func readMonotonic() time.Duration {
	var now syscall.Timespec
	if _, _, failed := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&now)), 0); failed != 0 {
		panic(failed)
	}
	return time.Duration(now.Nano())
}

func nowUs() uint64 { return uint64((monotonicBegan + time.Since(began)).Microseconds()) }
