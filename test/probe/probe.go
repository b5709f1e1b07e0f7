// Package probe is the client side of the demo and the end-to-end tests: it runs inside a pod, asks a server and says
// what it saw. Its counterpart is package serve.
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

// What is asked once is asked and told as in a connectivity test.
type (
	// Request is one question.
	Request = talk.Request
	// Answer is what came back: what the server said, and what the client saw.
	Answer = talk.Asked
)

// Ask asks once. A failure is part of the Answer.
func Ask(ctx context.Context, r Request) Answer { return talk.Ask(ctx, r) }

// Resolve asks the pod's resolver, search path and all, for "host", "srv", "ptr", "cname" or "txt".
func Resolve(ctx context.Context, kind, name string) ([]string, error) {
	return talk.Resolve(ctx, kind, name)
}

// Held is what a held conversation went through.
type Held struct {
	Rounds int `json:"rounds"`
	// WorstMillis is the longest time between two answers.
	WorstMillis float64 `json:"worstMs"`
	// Error ended it early.
	Error string `json:"error,omitempty"`
}

// Hold keeps one TCP connection for the time, asking and being answered every interval, and measures the longest
// silence. started is called after the first answer.
func Hold(ctx context.Context, r Request, d, interval time.Duration, started func()) Held {
	var h Held
	h.Error = talk.Why(h.hold(ctx, r, d, interval, started))
	return h
}

func (h *Held) hold(ctx context.Context, req Request, d, interval time.Duration, started func()) error {
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
	end := time.Now().Add(d)
	last := time.Now()
	for time.Now().Before(end) {
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
	}
	return nil
}

// Spread is where new connections went over a time.
type Spread struct {
	// Counts are the answers by pod.
	Counts map[string]int `json:"counts"`
	// Last is when the last connection that a pod answered was begun, by pod; "" stands for those that failed.
	Last map[string]time.Time `json:"last"`
	// Errors are what the failed ones said, each once.
	Errors map[string]int `json:"errors,omitempty"`
}

// watchPause leaves the machine time for what is watched.
const watchPause = 2 * time.Millisecond

// Watch asks again and again, on a new connection each time, for d. started is called after the first answer.
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

// Followed is how a UDP client that keeps its port fared.
type Followed struct {
	// Moved is set when another pod than the first answered, To.
	Moved bool   `json:"moved"`
	To    string `json:"to,omitempty"`
	// Lost counts datagrams without answer.
	Lost  int    `json:"lost"`
	Error string `json:"error,omitempty"`
}

// Follow finds a port whose datagrams from goes to, and goes on sending from it until another pod answers or the time
// is over. started is called when it is found.
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

// exchange sends one datagram and says which pod answered.
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

// Echo sends ICMP echoes through an unprivileged ping socket and reports whether one came back.
func Echo(ctx context.Context, to netip.Addr, timeout time.Duration) Answer {
	start := time.Now()
	err := echo(ctx, to, timeout)
	return Answer{Error: talk.Why(err), Millis: float64(time.Since(start).Microseconds()) / 1000}
}
