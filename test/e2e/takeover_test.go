package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/lab"
)

// giveUp is a server that gives up each connection before it has heard or said anything, until the input ends: ADDR
// WHEN. With "accepted" it resets what it has accepted. With "closing" it closes its socket when the input ends, while
// its kernel waits for the first data (tcp(7): TCP_DEFER_ACCEPT): to that, handshakes are under way until then.
func giveUp(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	config := net.ListenConfig{}
	if args[1] == "closing" {
		config.Control = func(_, _ string, c syscall.RawConn) (err error) {
			if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60) }); e != nil {
				return e
			}
			return err
		}
	}
	ln, err := config.Listen(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	started()
	for n := 0; ; n++ {
		c, err := ln.Accept()
		if err != nil {
			return print(n) // the input has ended
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}

// greet says a line to each client, and then is transfer-serve.
func greet(ctx context.Context, args []string) error {
	return serveEach(ctx, args[0], func(c net.Conn) {
		if _, err := fmt.Fprintln(c, "hello"); err != nil {
			fmt.Println("greet:", err)
		}
		serveTransfer(c)
	})
}

// meet opens connections, and begins; when the input ends, it transfers over each: ADDR CONNECTIONS BYTES WHO. If WHO
// is "server", that greets before meet begins.
func meet(ctx context.Context, args []string) error {
	number, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return err
	}
	input := untilInputEnds(ctx)
	all := make([]net.Conn, number)
	for i := range all {
		if all[i], err = (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", args[0]); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		if args[3] != "server" {
			continue
		}
		if _, err := io.ReadFull(all[i], make([]byte, len("hello\n"))); err != nil {
			return fmt.Errorf("connection %d is not greeted: %w", i, err)
		}
	}
	started()
	<-input.Done()
	out := make([]transferred, number)
	failed := make([]error, number)
	var done sync.WaitGroup
	for i, c := range all {
		done.Go(func() { out[i], failed[i] = transferOver(c, 1, size) })
	}
	done.Wait()
	for i, err := range failed {
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	return print(out)
}

// TestTakeOver: of two servers of a Service one gives its connections up: it resets what it has accepted, or closes its
// socket while handshakes are under way. No client hears of that, and all that is sent both ways arrives, on a path
// that loses packets, and also when the agent of the client's node is killed.
func TestTakeOver(t *testing.T) {
	const connections, size, port = 24, 1 << 18, 9700
	both := func(yaml string) string {
		return strings.Replace(strings.Replace(yaml, "app: quits", "app: both", 1), "app: stays", "app: both", 1)
	}
	service := strings.ReplaceAll(serviceYAML("both", "both", 0), "targetPort: 9000", fmt.Sprint("targetPort: ", port))
	c := up(t, "takeover", nodesYAML+podYAML("client", "node-1")+both(podYAML("quits", "node-1"))+both(podYAML("stays", "node-2"))+service)
	if got := tapestryLab(t, "impair", "--name", c.Name, "node-1", "node-2", "--loss", "1%"); got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	listen := fmt.Sprint(":", port)
	for _, v6 := range []bool{false, true} {
		for _, when := range []string{"accepted", "closing"} {
			t.Run(fmt.Sprintf("%s, IPv6 %v", when, v6), func(t *testing.T) {
				serve, speaks := "greet", "server"
				if when == "closing" {
					serve, speaks = "transfer-serve", "client"
				}
				server := c.begin(t, lab.Pod("stays"), serve, listen)
				quits := c.begin(t, lab.Pod("quits"), "give-up", listen, when)
				before := c.counters(t, "node-1").Of("tapestry_drops_total")["retried"]
				client := c.begin(t, lab.Pod("client"), "meet", at(c.addr(t, "svc/both", v6), 81), fmt.Sprint(connections), fmt.Sprint(size), speaks)
				if when == "closing" {
					quits.end(t)
				} else {
					c.killed(t, "node-1")
				}
				for i, got := range decode[[]transferred](t, client.end(t)) {
					if !got.There || !got.Back || got.Bytes != size {
						t.Errorf("connection %d: %+v", i, got)
					}
				}
				if when == "closing" {
					if n := c.counters(t, "node-1").Of("tapestry_drops_total")["retried"] - before; n == 0 {
						t.Error("no connection was taken over")
					}
				} else if n := decode[int](t, quits.end(t)); n == 0 {
					t.Error("no connection was taken over")
				}
				server.end(t)
			})
		}
	}
}
