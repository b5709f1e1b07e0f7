// Package freeport gives tests ports of this machine on which nobody listens, and on which nobody will: neither a test
// of another package, which runs at the same time, nor a client to which the kernel gives a port.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// least is the smallest port that is given. Below are those of programs that may run on this machine.
const least = 10_000

// Of returns a port that is free in both families and protocols, and belongs to the test until the test ends.
func Of(t testing.TB) uint16 {
	t.Helper()
	end := clients(t)
	for range 1000 {
		port := least + rand.IntN(end-least)
		// All tests know who has a port by a name in the network namespace, which is free again when its process ends.
		claim, err := net.Listen("unix", fmt.Sprintf("@tapestry-freeport-%d", port))
		if err != nil {
			continue
		}
		if !isFree(port) {
			claim.Close()
			continue
		}
		t.Cleanup(func() { claim.Close() })
		return uint16(port)
	}
	t.Fatalf("no port from %d to %d is free", least, end-1)
	return 0
}

// clients returns the first port that the kernel gives to clients by itself.
func clients(t testing.TB) int {
	t.Helper()
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil || first <= least {
		t.Fatalf("%s says %q: expected a range that begins above %d", file, b, least)
	}
	return first
}

// isFree reports whether nobody has a port. Its sockets are not package net's: a kernel that looks for events of a
// socket while it is closed frees the port a moment later (Linux 6.9, epi_fget).
func isFree(port int) bool {
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		s, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
		var any unix.Sockaddr = &unix.SockaddrInet6{Port: port}
		if err == unix.EAFNOSUPPORT {
			s, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
			any = &unix.SockaddrInet4{Port: port}
		}
		if err != nil {
			return false
		}
		err = unix.Bind(s, any)
		unix.Close(s)
		if err != nil {
			return false
		}
	}
	return true
}
