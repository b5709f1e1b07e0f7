package freeport

import (
	"fmt"
	"net"
	"testing"

	"tapestry.dev/tapestry/test/await"
)

// No port is given twice while its test lasts, nor one on which somebody listens, nor one of the kernel's.
func TestOf(t *testing.T) {
	given := map[uint16]bool{}
	for range 200 {
		port := Of(t)
		if given[port] || int(port) < least || int(port) >= clients(t) {
			t.Fatalf("port %d was given after %v", port, given)
		}
		given[port] = true
	}
	for port := range given {
		for _, network := range []string{"tcp", "tcp4", "tcp6"} {
			if l, err := net.Listen(network, fmt.Sprintf("localhost:%d", port)); err == nil {
				l.Close()
			} else if network != "tcp6" { // a machine without IPv6
				t.Errorf("%s %d: %v", network, port, err)
			}
		}
		break
	}
}

// A port that is taken in one protocol only is not free.
func TestTaken(t *testing.T) {
	port := Of(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	for network, take := range map[string]func() (interface{ Close() error }, error){
		"tcp": func() (interface{ Close() error }, error) { return net.Listen("tcp", addr) },
		"udp": func() (interface{ Close() error }, error) { return net.ListenPacket("udp", addr) },
	} {
		held, err := take()
		if err != nil {
			t.Fatal(err)
		}
		if isFree(int(port)) {
			t.Errorf("%s: a port that is taken is free", network)
		}
		held.Close()
		await.Until(t, network+": a port that was given back is free", func() bool { return isFree(int(port)) })
	}
}
