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
	"time"

	"tapestry.dev/tapestry/cmd/tapestry/connectivity/talk"
)

// Single questions and their answers are those of a connectivity test.
type (
	// Request is one question.
	Request = talk.Request
	// Answer is the result: what the server said, and what the client saw.
	Answer = talk.Asked
)

// Ask asks once. A failure is part of the Answer.
func Ask(ctx context.Context, r Request) Answer { return talk.Ask(ctx, r) }

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
	last := time.Now()
	for more := moreRounds; more > 0; {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := fmt.Fprintf(c, "round %d\n", h.Rounds); err != nil {
			return err
		}
		if _, err := r.ReadString('\n'); err != nil {
			return err
		}
		if h.Rounds++; h.Rounds == 1 {
			started()
		} else if gap := float64(time.Since(last).Microseconds()) / 1000; gap > h.WorstMillis {
			h.WorstMillis = gap
		}
		last = time.Now()
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
	// Counts has the number of answers by pod.
	Counts map[string]int `json:"counts"`
	// Last has, by pod, when the last connection began that the pod answered. The key "" stands for failed connections.
	Last map[string]time.Time `json:"last"`
	// Errors has the errors of the failed connections, and how often each came.
	Errors map[string]int `json:"errors,omitempty"`
}

// watchPause leaves processor time for what is watched.
const watchPause = 2 * time.Millisecond

// Watch asks again and again for d, each time on a new connection. started is called after the first answer.
func Watch(ctx context.Context, r Request, d time.Duration, started func()) Spread {
	s := Spread{Counts: map[string]int{}, Last: map[string]time.Time{}, Errors: map[string]int{}}
	first := true
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; <-tick.C {
		begun := time.Now()
		a := Ask(ctx, r)
		if a.Error != "" {
			s.Errors[a.Error]++
			a.Pod = ""
		}
		s.Counts[a.Pod]++
		s.Last[a.Pod] = begun
		if first {
			first = false
			started()
		}
	}
	return s
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
		if err != nil {
			return err
		}
		if pod == from {
			break
		}
		if tries == 100 {
			return fmt.Errorf("100 clients, and none was served by %s", from)
		}
	}
	started()
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; <-tick.C {
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
	start := time.Now()
	err := echo(ctx, to, timeout)
	return Answer{Error: talk.Why(err), Millis: float64(time.Since(start).Microseconds()) / 1000}
}
