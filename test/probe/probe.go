// Package probe is the client side of the demo and the end-to-end tests. It runs inside a pod, asks a server and
// reports what it saw. Package serve is the server side.
package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"tapestry.dev/tapestry/cmd/tapestry/connectivity/talk"
	"tapestry.dev/tapestry/test/awake"
)

// Single questions and their answers are those of a connectivity test.
type (
	// Request is one question.
	Request = talk.Request
	// Answer is the result: what the server said, and what the client saw.
	Answer = talk.Asked
)

// Ask asks once. A failure is part of the Answer. Like all times of this package, how long it took leaves out the time
// in which the machine let nobody run.
func Ask(ctx context.Context, r Request) Answer {
	clock := awake.Start()
	defer clock.Stop()
	a := talk.Ask(ctx, r)
	a.Millis = millis(clock.Now())
	return a
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Resolve asks the pod's resolver, with its search path, for "host", "srv", "ptr", "cname" or "txt".
func Resolve(ctx context.Context, kind, name string) ([]string, error) {
	return talk.Resolve(ctx, kind, name)
}

// Held is the result of a held connection.
type Held struct {
	Rounds int `json:"rounds"`
	// WorstMillis is the longest time between two answers.
	WorstMillis float64 `json:"worstMs"`
	// Error is why the connection ended early.
	Error string `json:"error,omitempty"`
}

// moreRounds is how many answers a held connection still has to get after it was let go.
const moreRounds = 10

// Hold keeps one TCP connection open until letGo is closed, and for moreRounds after that. It sends a question every
// interval, and measures the longest time between answers. started is called after the first answer.
func Hold(ctx context.Context, r Request, interval time.Duration, letGo <-chan struct{}, started func()) Held {
	var h Held
	h.Error = talk.Why(h.hold(ctx, r, interval, letGo, started))
	return h
}

func (h *Held) hold(ctx context.Context, req Request, interval time.Duration, letGo <-chan struct{}, started func()) error {
	c, err := req.Dialer().DialContext(ctx, "tcp", req.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil { // the greeting
		return err
	}
	clock := awake.Start()
	defer clock.Stop()
	last := clock.Now()
	for more := moreRounds; more > 0; {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprintf(c, "round %d\n", h.Rounds); err != nil {
			return err
		}
		if _, err := r.ReadString('\n'); err != nil {
			return err
		}
		now := clock.Now()
		if h.Rounds++; h.Rounds == 1 {
			started()
		} else {
			h.WorstMillis = max(h.WorstMillis, millis(now-last))
		}
		last = now
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-letGo:
			more--
		default:
		}
	}
	return nil
}

// Spread says where new connections went over some time.
type Spread struct {
	// Counts has the number of answers by pod. The key "" stands for failed connections.
	Counts map[string]int `json:"counts"`
	// LateMillis has, by the same keys, how long after the mark the last of these connections began; no key when none
	// began after it.
	LateMillis map[string]float64 `json:"lateMs,omitempty"`
	// Errors has the errors of the failed connections, and how often each came.
	Errors map[string]int `json:"errors,omitempty"`
}

// Late returns how long after the mark the last connection began that went to a pod, or failed if the pod is "".
func (s *Spread) Late(pod string) time.Duration {
	return time.Duration(s.LateMillis[pod] * float64(time.Millisecond))
}

const (
	// watchPause leaves processor time for what is watched.
	watchPause = 2 * time.Millisecond
	// slow is how long a connection may take before it counts as failed. The kernel sends a lost SYN again after a
	// second.
	slow = 200 * time.Millisecond
	// patience limits how long a connection may be silent before it counts as broken.
	patience = 20 * time.Second
)

// Signals tell a Watch what happens outside of it.
type Signals struct {
	// Started is called when each of Pods has answered.
	Pods    []string
	Started func()
	// Mark is closed when something has happened after which the connections are looked at again, and LetGo when
	// enough was seen.
	Mark, LetGo <-chan struct{}
}

// Watch asks again and again, each time on a new connection, until it was let go, and then a few times more.
func Watch(ctx context.Context, r Request, sig Signals) Spread {
	s := Spread{Counts: map[string]int{}, LateMillis: map[string]float64{}, Errors: map[string]int{}}
	clock := awake.Start()
	defer clock.Stop()
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	started, marked := false, time.Duration(-1)
	for more := moreRounds; more > 0 && ctx.Err() == nil; <-tick.C {
		if marked < 0 && closed(sig.Mark) {
			marked = clock.Now()
		}
		if closed(sig.LetGo) {
			more--
		}
		begun := clock.Now()
		a := talk.Ask(ctx, r)
		if took := clock.Now() - begun; took > slow && a.Error == "" {
			a.Error = "slow"
		}
		if a.Error != "" {
			s.Errors[a.Error]++
			a.Pod = ""
		}
		s.Counts[a.Pod]++
		if marked >= 0 {
			s.LateMillis[a.Pod] = millis(begun - marked)
		}
		if !started && !slices.ContainsFunc(sig.Pods, func(pod string) bool { return s.Counts[pod] == 0 }) {
			started = true
			sig.Started()
		}
	}
	return s
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Followed is the result of a UDP client that keeps its port.
type Followed struct {
	// Moved is set when a pod other than the first answered. To is that pod.
	Moved bool   `json:"moved"`
	To    string `json:"to,omitempty"`
	// Lost counts datagrams without an answer.
	Lost  int    `json:"lost"`
	Error string `json:"error,omitempty"`
}

// Follow finds a client port whose datagrams go to the pod from. It then sends from this port until another pod answers
// or the time is over. started is called when the port is found.
func Follow(ctx context.Context, addr, from string, d time.Duration, started func()) Followed {
	var f Followed
	f.Error = talk.Why(f.follow(ctx, addr, from, d, started))
	return f
}

func (f *Followed) follow(ctx context.Context, addr, from string, d time.Duration, started func()) error {
	var c net.Conn
	for tries := 0; ; tries++ {
		var err error
		if c, err = net.Dial("udp", addr); err != nil {
			return err
		}
		defer c.Close()
		pod, err := exchange(c)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if pod == from {
			break
		}
		if tries == 200 {
			return fmt.Errorf("200 clients, and none was served by %s", from)
		}
	}
	started()
	clock := awake.Start()
	defer clock.Stop()
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	for clock.Now() < d && ctx.Err() == nil {
		pod, err := exchange(c)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			f.Lost++
		case err != nil:
			return err
		case pod != from:
			f.Moved, f.To = true, pod
			return nil
		}
		<-tick.C
	}
	return ctx.Err()
}

// exchange sends one datagram and returns which pod answered.
func exchange(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := io.WriteString(c, "where are you"); err != nil {
		return "", err
	}
	buf := make([]byte, 65535)
	n, err := c.Read(buf)
	if err != nil {
		return "", err
	}
	var a talk.Answer
	err = json.Unmarshal(buf[:n], &a)
	return a.Pod, err
}

// Echo sends ICMP echo requests through an unprivileged ping socket. The Answer says whether one was answered.
func Echo(ctx context.Context, to netip.Addr, timeout time.Duration) Answer {
	clock := awake.Start()
	defer clock.Stop()
	err := echo(ctx, to, timeout)
	return Answer{Error: talk.Why(err), Millis: millis(clock.Now())}
}
