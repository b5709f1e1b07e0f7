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

// askTime bounds a question that sets no time itself.
const askTime = 5 * time.Second

// Request is one question.
type Request struct {
	Network string // "tcp" or "udp"
	Addr    string
	// LocalPort is the client's port; 0 leaves it to the kernel.
	LocalPort int
	Body      string
	// Timeout bounds the whole; 0 is 5 s.
	Timeout time.Duration
}

// Asked is what came back: what the server said, and what the client saw.
type Asked struct {
	Answer
	// Local is the client's address as the client sees it.
	Local string `json:"local,omitempty"`
	// Error is Why there was no answer; "" when there was one.
	Error string `json:"error,omitempty"`
	// Millis is how long it took.
	Millis float64 `json:"ms"`
}

// Ask asks once. A failure is part of what it gives.
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

// Dialer dials from the request's port.
func (r Request) Dialer() *net.Dialer {
	d := &net.Dialer{}
	if r.LocalPort == 0 {
		return d
	}
	// Connections to several servers from one port, at once.
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

// Fetched is what became of an HTTP request.
type Fetched struct {
	Status int `json:"status"`
	// Error is Why there was no response; "" when there was one.
	Error string `json:"error,omitempty"`
}

// Fetch makes a GET request, follows no redirect and believes every certificate: whether there is a way is all that is
// asked.
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
