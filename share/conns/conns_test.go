package conns

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// serve echoes what is sent on connections of l.
func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func dial(t *testing.T, from string, to net.Addr) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(t.Context(), "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(await.Patience))
	return c
}

// says returns an error unless c is served.
func says(c net.Conn) error {
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// A client that holds many silent connections loses its own, while others are served on theirs, old and new.
func TestSilentFlood(t *testing.T) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(8, nil)
	l := s.Over(plain)
	defer l.Close()
	go serve(l)
	old := dial(t, "127.0.0.2", l.Addr())
	if err := says(old); err != nil {
		t.Fatal(err)
	}
	var flood []net.Conn
	for range 50 {
		c := dial(t, "127.0.0.3", l.Addr())
		if err := says(c); err != nil { // ensures that it was accepted
			t.Fatal(err)
		}
		flood = append(flood, c)
	}
	if err := says(old); err != nil {
		t.Errorf("the old connection of another: %v", err)
	}
	if err := says(dial(t, "127.0.0.2", l.Addr())); err != nil {
		t.Errorf("a new connection of another: %v", err)
	}
	if n := s.Stats().Held; n > 8 {
		t.Errorf("%d connections are held, of 8", n)
	}
	if _, err := flood[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest connection of the flood is still held: %v", err)
	}
}

// A client is gone that has reset its connection, and not one that only sends no more, which has left.
func TestGone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair := func() (client, server net.Conn) {
		client = dial(t, "127.0.0.1", l.Addr())
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		return client, server
	}
	ended, server := pair()
	io.WriteString(ended, "x")
	if Left(server) {
		t.Error("a client that may send more has left")
	}
	ended.(*net.TCPConn).CloseWrite()
	await.Until(t, "a client that sends no more has left", func() bool { return Left(server) })
	if got, err := io.ReadAll(server); string(got) != "x" || err != nil || Gone(server) {
		t.Errorf("a client that sends no more is gone: %v; it sent %q, %v", Gone(server), got, err)
	}
	server.Close()
	if !Gone(server) || !Left(server) {
		t.Error("a closed connection is not gone")
	}
	reset, server := pair()
	io.WriteString(reset, "x")
	reset.(*net.TCPConn).SetLinger(0)
	reset.Close()
	await.Until(t, "a client that reset its connection is gone", func() bool { return Gone(server) })
	if n, err := server.Read(make([]byte, 1)); n != 1 {
		t.Errorf("the kernel gave %d bytes, %v: Gone need not be asked after a read", n, err)
	}
}
