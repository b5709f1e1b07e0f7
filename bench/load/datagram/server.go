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
	// quiet is how long nothing must have come for what is missing to be lost. No path that is measured holds packets
	// that long.
	quiet = 250 * time.Millisecond
	// poll is how often that is looked at.
	poll = 10 * time.Millisecond
)

// Server receives the datagrams of any number of streams on one socket.
type Server struct {
	conn    *net.UDPConn
	mu      sync.Mutex
	streams map[uint64]*Stream
}

// NewServer takes c over; Serve closes it.
func NewServer(c *net.UDPConn) *Server {
	SetBuffers(c)
	return &Server{conn: c, streams: map[uint64]*Stream{}}
}

// Serve receives until ctx ends, and returns nil then.
func (s *Server) Serve(ctx context.Context) error {
	defer s.conn.Close()
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	conn := ipv4.NewPacketConn(s.conn)
	// Asked for on a socket of both families this tells of IPv4. A socket of IPv6 alone refuses it.
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
				sent = 1 // what cannot be sent is lost, and the client counts it
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
		// The header is in its place already; what else was received goes back as filling.
		out = append(out, ipv4.Message{Buffers: [][]byte{m.Buffers[0][:last.answer]}, Addr: m.Addr, OOB: back(m.OOB[:m.NN])})
	}
	return out
}

// back is the control message that sends an answer from the address that was asked: of a machine with several the
// kernel would take another one, from which a connected socket and a NAT take nothing. It is nil when the address is
// not known.
func back(received []byte) []byte {
	var asked ipv4.ControlMessage
	if asked.Parse(received) != nil || asked.Dst == nil {
		return nil
	}
	return (&ipv4.ControlMessage{Src: asked.Dst}).Marshal()
}

// Stream is one that the server knows.
type Stream struct {
	// ID is what its datagrams begin with.
	ID     uint64
	answer int

	server *Server
	tally  tally // guarded by the server's mu
}

// Open makes a stream whose datagrams are answered with as many bytes, HeaderLen to MaxLen; 0: counted. The caller
// closes it.
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

// Finish returns what arrived once all of sent did, or nothing has come for a while.
func (st *Stream) Finish(ctx context.Context, sent uint64) (Report, error) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for begun := time.Now(); ; {
		r, last := st.report()
		if r.Packets >= sent || time.Since(begun) > quiet && time.Since(last) > quiet {
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
