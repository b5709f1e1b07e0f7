package talk

import (
	"context"
	"net"
	"strconv"
	"testing"

	"tapestry.dev/tapestry/test/userns"
)

// The tests run in a network namespace of their own, in which all ports are free.
func TestMain(m *testing.M) { userns.Main(m) }

func serve(t *testing.T, c Config) {
	t.Helper()
	s, err := Listen(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAsk(t *testing.T) {
	serve(t, Config{Name: "p", TCP: []int{9000}, UDP: []int{9000}})
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range []string{"127.0.0.1:9000", "[::1]:9000", "127.0.0.9:9000"} {
			a := Ask(t.Context(), Request{Network: network, Addr: addr, Body: "hello", LocalPort: 40404})
			want := Answer{Pod: "p", Client: a.Local, Server: addr, Proto: network, Got: "hello"}
			if a.Error != "" || a.Answer != want {
				t.Errorf("%s %s: %+v, want %+v", network, addr, a, want)
			}
			if _, port, err := net.SplitHostPort(a.Client); err != nil || port != "40404" {
				t.Errorf("%s %s: the client is %s, want port 40404", network, addr, a.Client)
			}
		}
	}
}

// A missing server is reported with one word, also over UDP.
func TestWhy(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		if a := Ask(t.Context(), Request{Network: network, Addr: "127.0.0.1:9"}); a.Error != "refused" {
			t.Errorf("%s: %q", network, a.Error)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	if a := Ask(ctx, Request{Network: "tcp", Addr: "127.0.0.1:9"}); a.Error != "timeout" {
		t.Errorf("out of time: %q", a.Error)
	}
}

// TestListen checks that Listen keeps no port if one cannot be opened.
func TestListen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := Listen(t.Context(), Config{Address: "127.0.0.1", TCP: []int{9000, 9001}, UDP: []int{9000}}); err == nil {
		t.Fatal("a port was taken, and nothing said so")
	}
	for _, network := range []string{"tcp", "udp"} {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(9000))
		if network == "udp" {
			pc, err := net.ListenPacket(network, addr)
			if err != nil {
				t.Fatalf("%s is still held: %v", network, err)
			}
			pc.Close()
			continue
		}
		ln, err := net.Listen(network, addr)
		if err != nil {
			t.Fatalf("%s is still held: %v", network, err)
		}
		ln.Close()
	}
}
