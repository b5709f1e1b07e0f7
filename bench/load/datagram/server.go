package datagram

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
)

const (
	// quiet is how long no datagram may arrive before the missing ones count as lost. No measured path holds packets
	// that long.
	quiet = 250 * time.Millisecond
	// silent is how long Finish waits for the first datagram.
	silent = 5 * time.Second
	// poll is how often Finish checks for quiet.
	poll = 10 * time.Millisecond
)

// Server receives the datagrams of any number of streams on one socket.
type Server struct {
	conn    *net.UDPConn
	mu      sync.Mutex
	streams map[uint64]*Stream
}

// NewServer takes ownership of c. Serve closes it.
func NewServer(c *net.UDPConn) *Server {
	SetBuffers(c)
	return &Server{conn: c, streams: map[uint64]*Stream{}}
}

// Serve receives until ctx ends, and then returns nil.
func (s *Server) Serve(ctx context.Context) error {
	defer s.conn.Close()
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	conn := ipv4.NewPacketConn(s.conn)
	// On a socket of both families this option covers IPv4. A socket of IPv6 alone refuses it.
	_ = conn.SetControlMessage(ipv4.FlagDst, true)
	in, out := make([]ipv4.Message, Batch), make([]ipv4.Message, 0, Batch)
	for i := range in {
		in[i].Buffers, in[i].OOB = [][]byte{make([]byte, MaxLen)}, ipv4.NewControlMessage(ipv4.FlagDst)
	}
	for {
		n, err := conn.ReadBatch(in, 0)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("receive datagrams: %w", err)
		}
		out = s.take(in[:n], out[:0])
		for len(out) > 0 {
			sent, err := conn.WriteBatch(out, 0)
			if err != nil {
				sent = 1 // skips a datagram that cannot be sent; the client counts it as lost
			}
			out = out[sent:]
		}
	}
}

// take counts what arrived, and appends the answers to out.
func (s *Server) take(in, out []ipv4.Message) []ipv4.Message {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var last *Stream
	for _, m := range in {
		h, ok := ParseHeader(m.Buffers[0][:m.N])
		if !ok {
			continue
		}
		if last == nil || last.ID != h.Stream {
			if last, ok = s.streams[h.Stream]; !ok {
				continue
			}
		}
		if last.answer == 0 {
			last.tally.add(h.Sequence, m.N, now)
			continue
		}
		// The header is in place already. The other bytes received go back as filling.
		out = append(out, ipv4.Message{Buffers: [][]byte{m.Buffers[0][:last.answer]}, Addr: m.Addr, OOB: back(m.OOB[:m.NN])})
	}
	return out
}

// back returns the control message that sends an answer from the address that was asked. On a machine with several
// addresses the kernel might choose another source address, and a connected socket or a NAT would drop the answer. back
// returns nil when the address is not known.
func back(received []byte) []byte {
	var asked ipv4.ControlMessage
	if asked.Parse(received) != nil || asked.Dst == nil {
		return nil
	}
	return (&ipv4.ControlMessage{Src: asked.Dst}).Marshal()
}

// Stream is a stream that the server knows.
type Stream struct {
	// ID is the number that the stream's datagrams begin with.
	ID     uint64
	answer int

	server *Server
	tally  tally // guarded by the server's mu
}

// Open makes a stream. Its datagrams are answered with answer bytes, HeaderLen to MaxLen; with 0 they are only counted.
// The caller closes the stream.
func (s *Server) Open(answer int) *Stream {
	st := &Stream{ID: rand.Uint64(), answer: answer, server: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st.ID] = st
	return st
}

// Close makes the server forget the stream.
func (st *Stream) Close() {
	st.server.mu.Lock()
	defer st.server.mu.Unlock()
	delete(st.server.streams, st.ID)
}

// Finish waits until all sent datagrams have arrived or none has for a while, and returns what arrived. It waits longer
// for the first one: on a busy machine the server's goroutine may not have run yet.
func (st *Stream) Finish(ctx context.Context, sent uint64) (Report, error) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for begun := time.Now(); ; {
		r, last := st.report()
		patience := quiet
		if r.Packets == 0 {
			patience = silent
		}
		if r.Packets >= sent || time.Since(begun) > patience && time.Since(last) > patience {
			return r, nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return Report{}, ctx.Err()
		}
	}
}

func (st *Stream) report() (Report, time.Time) {
	st.server.mu.Lock()
	defer st.server.mu.Unlock()
	return st.tally.Report, st.tally.last
}
