package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tapestry.dev/tapestry/bench/load/datagram"
)

// helloTimeout limits how long a client may take to send its hello.
const helloTimeout = 10 * time.Second

// Server is the server of every kind of measurement except DNS.
type Server struct {
	tcp, http net.Listener // http may be nil
	datagrams *datagram.Server
}

// Listen listens at addr, such as ":5201", for TCP and UDP, and at httpAddr for HTTP unless that is empty. Serve closes
// the sockets.
func Listen(ctx context.Context, addr, httpAddr string) (*Server, error) {
	s := new(Server)
	var err error
	if s.tcp, err = new(net.ListenConfig).Listen(ctx, "tcp", addr); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	packets, err := new(net.ListenConfig).ListenPacket(ctx, "udp", s.tcp.Addr().String())
	if err == nil && httpAddr != "" {
		if s.http, err = new(net.ListenConfig).Listen(ctx, "tcp", httpAddr); err != nil {
			packets.Close()
		}
	}
	if err != nil {
		s.tcp.Close()
		return nil, fmt.Errorf("load: %w", err)
	}
	s.datagrams = datagram.NewServer(packets.(*net.UDPConn))
	return s, nil
}

// Addr returns the address for TCP and UDP.
func (s *Server) Addr() net.Addr { return s.tcp.Addr() }

// HTTPAddr returns the address for HTTP, or nil without HTTP.
func (s *Server) HTTPAddr() net.Addr {
	if s.http == nil {
		return nil
	}
	return s.http.Addr()
}

// Serve serves any number of clients at once until ctx ends, and then returns nil. It closes the connection of a client
// that does not speak the protocol. It may be called once.
func (s *Server) Serve(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.serveTCP(groupCtx) })
	group.Go(func() error { return s.datagrams.Serve(groupCtx) })
	if s.http != nil {
		group.Go(func() error { return serveHTTP(groupCtx, s.http) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

func (s *Server) serveTCP(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer cancel()
	context.AfterFunc(ctx, func() { s.tcp.Close() })
	for {
		c, err := s.tcp.Accept()
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
			return fmt.Errorf("accept: %w", err)
		}
		handlers.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			s.handle(ctx, c) // the client sees and reports what goes wrong here
		})
	}
}

func (s *Server) handle(ctx context.Context, c net.Conn) error {
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
		// The client closes the connection when it has everything.
		c.SetReadDeadline(time.Now().Add(grace))
		_, err := io.Copy(io.Discard, c)
		return err
	case datagrams, datagramExchange:
		return s.handleDatagrams(ctx, c, h)
	default:
		return answer(c, h)
	}
}

// handleDatagrams keeps a stream open as long as c is open.
func (s *Server) handleDatagrams(ctx context.Context, c net.Conn, h hello) error {
	size := 0
	if h.kind == datagramExchange {
		size = int(h.response)
	}
	stream := s.datagrams.Open(size)
	defer stream.Close()
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, stream.ID)); err != nil {
		return err
	}
	// The client of a datagram stream says how many it sent. The client of an exchange only closes the connection.
	var sent [8]byte
	if _, err := io.ReadFull(c, sent[:]); err != nil {
		return err
	}
	r, err := stream.Finish(ctx, binary.BigEndian.Uint64(sent[:]))
	if err != nil {
		return err
	}
	_, err = c.Write(r.Append(nil))
	return err
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
