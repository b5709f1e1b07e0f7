package talk

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"
)

// askTime is how long a question without a Timeout may take.
const askTime = 5 * time.Second

// Request is one question.
type Request struct {
	Network string // "tcp" or "udp"
	Addr    string
	// LocalPort is the client's port; 0 lets the kernel choose one.
	LocalPort int
	Body      string
	// Timeout is how long the question may take in all; 0 means 5 s.
	Timeout time.Duration
}

// Asked is the result of a question: the server's answer, and what the client saw.
type Asked struct {
	Answer
	// Local is the client's address as the client sees it.
	Local string `json:"local,omitempty"`
	// Error says why there was no answer (see Why); "" if there was one.
	Error string `json:"error,omitempty"`
	// Millis is how long the question took, in milliseconds.
	Millis float64 `json:"ms"`
}

// Ask asks once. An error is part of the result.
func Ask(ctx context.Context, r Request) Asked {
	start := time.Now()
	a, err := ask(ctx, r)
	a.Millis = float64(time.Since(start).Microseconds()) / 1000
	a.Error = Why(err)
	return a
}

func ask(ctx context.Context, r Request) (a Asked, err error) {
	if r.Timeout == 0 {
		r.Timeout = askTime
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	c, err := r.Dialer().DialContext(ctx, r.Network, r.Addr)
	if err != nil {
		return a, err
	}
	defer c.Close()
	a.Local = c.LocalAddr().String()
	_ = c.SetDeadline(time.Now().Add(r.Timeout))
	if r.Network == "udp" {
		if _, err := io.WriteString(c, r.Body); err != nil {
			return a, err
		}
		buf := make([]byte, 65535)
		n, err := c.Read(buf)
		if err != nil {
			return a, err
		}
		return a, json.Unmarshal(buf[:n], &a.Answer)
	}
	in := bufio.NewReader(c)
	if _, err := in.ReadString('\n'); err != nil { // the greeting
		return a, err
	}
	if _, err := io.WriteString(c, r.Body+"\n"); err != nil {
		return a, err
	}
	line, err := in.ReadString('\n')
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal([]byte(line), &a.Answer)
}

// Dialer returns a dialer that uses the request's local port.
func (r Request) Dialer() *net.Dialer {
	d := &net.Dialer{}
	if r.LocalPort == 0 {
		return d
	}
	// This allows connections from one port to several servers at the same time.
	d.Control = func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
		}), err)
	}
	d.LocalAddr = &net.TCPAddr{Port: r.LocalPort}
	if r.Network == "udp" {
		d.LocalAddr = &net.UDPAddr{Port: r.LocalPort}
	}
	return d
}

// Fetched is the result of an HTTP request.
type Fetched struct {
	Status int `json:"status"`
	// Error says why there was no response (see Why); "" if there was one.
	Error string `json:"error,omitempty"`
}

// Fetch makes a GET request. It follows no redirect and accepts every certificate, since it only tests whether the
// server can be reached.
func Fetch(ctx context.Context, url string) Fetched {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	client := http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Fetched{Error: Why(err)}
	}
	resp, err := client.Do(req)
	if err != nil {
		return Fetched{Error: Why(err)}
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return Fetched{Status: resp.StatusCode, Error: Why(err)}
}
