package talk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
)

// Config is the name and the ports of a Server.
type Config struct {
	// Name is the name in the server's answers.
	Name string
	// Address is the address to listen on; "" means all.
	Address string
	// TCP and UDP are the ports of each protocol.
	TCP, UDP []int
}

// Server listens from the beginning, and answers while Serve runs.
type Server struct {
	name    string
	lines   []net.Listener
	packets []*net.UDPConn
}

// Listen opens all ports. If any cannot be opened, it closes the others and returns an error that names all that
// failed.
func Listen(ctx context.Context, c Config) (*Server, error) {
	s := &Server{name: c.Name}
	var errs []error
	for _, port := range c.TCP {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(c.Address, strconv.Itoa(port)))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.lines = append(s.lines, ln)
	}
	for _, port := range c.UDP {
		pc, err := new(net.ListenConfig).ListenPacket(ctx, "udp", net.JoinHostPort(c.Address, strconv.Itoa(port)))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.packets = append(s.packets, pc.(*net.UDPConn))
	}
	if err := errors.Join(errs...); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close closes the ports, which ends Serve.
func (s *Server) Close() {
	for _, ln := range s.lines {
		ln.Close()
	}
	for _, pc := range s.packets {
		pc.Close()
	}
}

// Serve answers until ctx is done or a socket fails, and then closes the ports. It returns nil if ctx is done.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	serve := func(f func() error) {
		running.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	for _, ln := range s.lines {
		serve(func() error { return s.serveTCP(ctx, ln) })
	}
	for _, pc := range s.packets {
		serve(func() error { return s.serveUDP(pc) })
	}
	<-ctx.Done()
	s.Close()
	running.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
		return cause
	}
	return nil
}

// serveTCP sends an answer on each new connection at once, for clients that only connect, and then one for each line.
func (s *Server) serveTCP(ctx context.Context, ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			lines := bufio.NewScanner(c)
			lines.Buffer(nil, MaxGot)
			for got := ""; ; got = lines.Text() {
				if _, err := c.Write(s.line(c.RemoteAddr(), c.LocalAddr(), "tcp", got)); err != nil {
					return
				}
				if !lines.Scan() {
					return
				}
			}
		}()
	}
}

// serveUDP answers every datagram.
func (s *Server) serveUDP(c *net.UDPConn) error {
	buf := make([]byte, MaxGot)
	oob := make([]byte, 256)
	if err := wantDestination(c); err != nil {
		return err
	}
	for {
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP error of an earlier answer
		}
		// The answer has to leave from the address to which the question was sent. A socket on all addresses does not
		// do that by itself.
		to := netip.AddrPortFrom(destination(oob[:oobn]), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		answer := s.line(unmapped(from), unmapped(to), "udp", string(bytes.TrimRight(buf[:n], "\n")))
		_, _, _ = c.WriteMsgUDPAddrPort(answer, source(to.Addr()), from) // UDP may lose it
	}
}

func (s *Server) line(client, server fmt.Stringer, proto, got string) []byte {
	return Encode(Answer{Pod: s.name, Client: client.String(), Server: server.String(), Proto: proto, Got: got})
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
