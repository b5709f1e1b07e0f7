package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// helloTimeout is how long a client may take to say what it wants.
const helloTimeout = 10 * time.Second

// ListenAndServe serves on a TCP address, such as ":5201", until ctx ends.
func ListenAndServe(ctx context.Context, addr string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return Serve(ctx, l)
}

// Serve is the server of every kind of measurement. It serves any number of clients at once until ctx ends, returns nil
// then, and closes l in any case. A client that speaks something else is hung up on.
func Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer cancel()
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
				continue
			}
			return fmt.Errorf("load: accept: %w", err)
		}
		handlers.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			handle(c) // what goes wrong here, the client sees and reports
		})
	}
}

func handle(c net.Conn) error {
	c.SetReadDeadline(time.Now().Add(helloTimeout))
	h, err := readHello(c)
	if err != nil {
		return err
	}
	c.SetReadDeadline(time.Time{})
	switch h.kind {
	case upload:
		r, err := receive(c)
		if err != nil {
			return err
		}
		_, err = c.Write(r.append(nil))
		return err
	case download:
		if err := sendFor(c, h.duration); err != nil {
			return err
		}
		// The client closes when it has all.
		c.SetReadDeadline(time.Now().Add(grace))
		_, err := io.Copy(io.Discard, c)
		return err
	default:
		return answer(c, h)
	}
}

// answer is the server's side of an exchange.
func answer(c net.Conn, h hello) error {
	request, response := make([]byte, h.request), make([]byte, h.response)
	for {
		if _, err := io.ReadFull(c, request); err != nil {
			return err
		}
		if _, err := c.Write(response); err != nil {
			return err
		}
		if h.kind == exchangeOnce {
			return nil
		}
	}
}
