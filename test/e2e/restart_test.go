package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/awake"
	"tapestry.dev/tapestry/test/lab"
)

const (
	// lastPort is where lastServe listens, in pods and outside.
	lastPort = 9200
	// lastBlock is how many bytes each end of a connection says each time, and lastPause the time between.
	lastBlock = 4 << 10
	lastPause = 40 * time.Millisecond
)

// say writes a stream that depends on seed alone to c, a block at a time, until ctx ends, and then ends it.
func say(ctx context.Context, c net.Conn, seed uint64) error {
	in, block := stream(seed, 1<<62), make([]byte, lastBlock)
	tick := time.NewTicker(lastPause)
	defer tick.Stop()
	for {
		_, _ = io.ReadFull(in, block) // has no end
		if _, err := c.Write(block); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return c.(*net.TCPConn).CloseWrite()
		}
	}
}

var errWrong = errors.New("other bytes came than were sent")

// listenTo reads that stream from c to its end. It calls heard after each piece.
func listenTo(c net.Conn, seed uint64, heard func(n int)) error {
	want, got, due := stream(seed, 1<<62), make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := c.Read(got)
		_, _ = io.ReadFull(want, due[:n])
		if !bytes.Equal(got[:n], due[:n]) {
			return errWrong
		}
		heard(n)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// lastServe is the far end of last: ADDR.
func lastServe(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	started()
	for {
		c, err := ln.Accept()
		if err != nil {
			return nil // the input has ended
		}
		go func() {
			defer c.Close()
			var first [8]byte
			if _, err := io.ReadFull(c, first[:]); err != nil {
				return
			}
			seed := binary.BigEndian.Uint64(first[:])
			until, done := context.WithCancel(ctx)
			go func() {
				err := listenTo(c, seed, func(int) {})
				if err != nil && ctx.Err() == nil {
					_ = c.(*net.TCPConn).SetLinger(0)
					_ = c.Close()
				}
				done()
			}()
			_ = say(until, c, seed+1)
		}()
	}
}

// lasted is the result of last, of connections to one address.
type lasted struct {
	Connections int
	// Cut counts connections that ended before their time, and Wrong those in which other bytes came than were sent.
	Cut, Wrong int
	Error      string // of one of them
	Bytes      int64
	// WorstMillis is the longest time in which a connection heard nothing, and AwakeMillis the same without the time in
	// which the machine lets nobody run.
	WorstMillis, AwakeMillis float64
	// Attempts counts short connections that were made meanwhile, one after the other; Refused those that failed.
	Attempts, Refused int
	Refusal           string
}

// last keeps COUNT connections to each address until the input ends, with streams in both directions: COUNT ADDR...
func last(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	clock := awake.Start()
	defer clock.Stop()
	out := make([]lasted, len(args)-1)
	var mu sync.Mutex
	var begun, done sync.WaitGroup
	for i, addr := range args[1:] {
		o := &out[i]
		for n := range count {
			begun.Add(1)
			done.Go(func() {
				bytes, worst, awake, err := lastOne(ctx, clock, addr, uint64(n)<<8, sync.OnceFunc(begun.Done))
				mu.Lock()
				defer mu.Unlock()
				o.Connections++
				o.Bytes += bytes
				o.WorstMillis = max(o.WorstMillis, worst.Seconds()*1000)
				o.AwakeMillis = max(o.AwakeMillis, awake.Seconds()*1000)
				switch {
				case err == nil:
					return
				case errors.Is(err, errWrong):
					o.Wrong++
				default:
					o.Cut++
				}
				o.Error = err.Error()
			})
		}
		done.Go(func() {
			for tick := time.NewTicker(20 * time.Millisecond); ctx.Err() == nil; <-tick.C {
				err := lastAttempt(addr)
				mu.Lock()
				if o.Attempts++; err != nil {
					o.Refused++
					o.Refusal = err.Error()
				}
				mu.Unlock()
			}
		})
	}
	begun.Wait()
	started()
	done.Wait()
	return print(out)
}

// lastAttempt makes a connection, has something answered, and ends it.
func lastAttempt(addr string) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err = c.Write(make([]byte, 8)); err == nil {
		_, err = io.ReadFull(c, make([]byte, 100))
	}
	return err
}

func lastOne(ctx context.Context, clock *awake.Clock, addr string, seed uint64, begun func()) (total int64, worst, awake time.Duration, err error) {
	defer begun()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return 0, 0, 0, err
	}
	defer c.Close()
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, seed)); err != nil {
		return 0, 0, 0, err
	}
	said := make(chan error, 1)
	go func() { said <- say(ctx, c, seed) }()
	before, real := clock.Now(), time.Now()
	err = listenTo(c, seed+1, func(n int) {
		now := clock.Now()
		awake, before = max(awake, now-before), now
		worst, real = max(worst, time.Since(real)), time.Now()
		total += int64(n)
		begun()
	})
	if err == nil && ctx.Err() == nil {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		_ = c.Close()
	}
	return total, worst, awake, errors.Join(err, <-said)
}

// restartNumbers returns how many connections of each kind TestRestart keeps, and how often the agent restarts.
func restartNumbers(t *testing.T) (connections, restarts int) {
	connections, restarts = 25, 4
	if s := os.Getenv("TAPESTRY_RESTARTS"); s != "" {
		if _, err := fmt.Sscanf(s, "%dx%d", &restarts, &connections); err != nil {
			t.Fatalf("TAPESTRY_RESTARTS=%s: expected RESTARTSxCONNECTIONS, as in 10x1000", s)
		}
	}
	return connections, restarts
}

// TestRestart: what an agent relays goes on while it is killed and replaced, again and again, as what it translates
// does. Services come and go meanwhile. New connections wait for the next agent; only one that was accepted in the
// moment of a SIGKILL is reset. What ends in the agent's own stack is measured, too.
func TestRestart(t *testing.T) {
	count, restarts := restartNumbers(t)
	limit := testTime + time.Duration(restarts)*3*time.Second
	service := func(name string, port int) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s-last}\nspec: {type: NodePort, selector: {app: %s}, ports: [{port: %d, nodePort: %d}]}\n",
			name, name, lastPort, port)
	}
	yaml := baseYAML + service("near", 30091) + service("far", 30092)
	c := upFor(t, limit, "restart", yaml)
	for _, where := range []lab.Target{lab.Pod("near"), lab.Pod("far"), lab.Outside()} {
		c.begin(t, where, "last-serve", fmt.Sprint(":", lastPort))
	}
	node := c.addr(t, "node-1", false)
	fromPod := c.begin(t, lab.Pod("client"), "last", fmt.Sprint(count),
		at(c.addr(t, "svc/near-last", false), lastPort), at(c.addr(t, "svc/far-last", false), lastPort), at(c.addr(t, "outside", false), lastPort))
	c.begin(t, lab.Outside(), "tell-port", fmt.Sprint(":", lastPort+1))
	datagrams := c.begin(t, lab.Pod("client"), "port-seen", at(c.addr(t, "outside", false), lastPort+1))
	fromOutside := c.begin(t, lab.Outside(), "last", fmt.Sprint(count), at(node, 30091), at(node, 30092))

	for i := range restarts {
		s := syscall.SIGKILL
		if i%2 == 1 {
			s = syscall.SIGTERM
		}
		before := nodeOf(c.status(t), "node-1").PID
		if err := c.KillAgent(c.ctx, "node-1", s, false); err != nil {
			t.Fatal(err)
		}
		c.write(t, yaml+strings.Repeat(serviceYAML(fmt.Sprint("other-", i), "near", 0), i%2))
		c.until(t, "another agent is ready", func(st *lab.Status) bool {
			n := nodeOf(st, "node-1")
			return n.PID != before && n.Agent == "ready"
		})
	}
	pod, outside := decode[[]lasted](t, fromPod.end(t)), decode[[]lasted](t, fromOutside.end(t))
	if seen := decode[map[string]int](t, datagrams.end(t)); len(seen) != 1 {
		t.Errorf("the server outside saw the pod's socket at %v, want one address", seen)
	}
	t.Logf("%-24s %5s %4s %6s %9s %8s %8s %s", "", "conns", "cut", "wrong", "attempts", "refused", "stall ms", "MB")
	for _, row := range []struct {
		name   string
		got    lasted
		relays bool // or translates
	}{
		{"ClusterIP, pod here", pod[0], true}, {"ClusterIP, pod elsewhere", pod[1], true}, {"egress", pod[2], true},
		{"NodePort, pod here", outside[0], true}, {"NodePort, pod elsewhere", outside[1], true},
	} {
		g := row.got
		t.Logf("%-24s %5d %4d %6d %9d %8d %8.0f %d %s %s", row.name, g.Connections, g.Cut, g.Wrong, g.Attempts, g.Refused, g.WorstMillis, g.Bytes>>20, g.Error, g.Refusal)
		if g.Connections != count || g.Wrong > 0 || row.relays && (g.Cut > 0 || g.Refused > restarts || g.AwakeMillis > 1000*stall.Seconds()) {
			t.Errorf("%s: %+v", row.name, g)
		}
	}
	log, err := os.ReadFile(filepath.Join(c.Dir, "nodes", "node-1", "agent.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(log, []byte("found the relayed connections of the agent before")); n < restarts {
		t.Errorf("connections went on in %d of %d agents", n, restarts)
	}
}

// portSeen sends a datagram a few times a second from one port to a server outside that tells the client's address,
// until the input ends: ADDR. It prints the addresses that the server saw.
func portSeen(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	seen := map[string]int{}
	buf := make([]byte, 1000)
	first := sync.OnceFunc(started)
	for ctx.Err() == nil {
		_, _ = io.WriteString(c, "where from?")
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := c.Read(buf); err == nil {
			seen[string(buf[:n])]++
			if len(seen) == 1 && seen[string(buf[:n])] == 12 { // it has lived for a second
				first()
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return print(seen)
}

// tellPort answers each datagram with the address of its sender: ADDR.
func tellPort(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	c, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	started()
	buf := make([]byte, 1000)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return nil // the input has ended
		}
		_, _ = c.WriteTo([]byte(from.String()), from)
	}
}
