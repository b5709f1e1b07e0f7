package datagram

import (
	"fmt"
	"net"

	"golang.org/x/net/ipv4"
)

// Batch is the number of datagrams that one system call moves.
const Batch = 64

// socketBuffer is the buffer size, in bytes, that is asked of the kernel for both directions. Many programs that send
// packets in bulk ask for this size. An unprivileged process gets at most net.core.wmem_max and rmem_max, 208 KiB by
// default.
const socketBuffer = 4 << 20

// SetBuffers makes c's buffers as large as the kernel allows.
func SetBuffers(c *net.UDPConn) {
	_ = c.SetReadBuffer(socketBuffer)
	_ = c.SetWriteBuffer(socketBuffer)
}

// Sender sends a stream's datagrams with consecutive sequence numbers. It is not for concurrent use.
type Sender struct {
	conn   *ipv4.PacketConn // its batches serve IPv6 as well
	stream uint64
	next   uint64
	msgs   []ipv4.Message
}

// NewSender returns a Sender of datagrams of size bytes (HeaderLen to MaxLen). c must be connected, and stays the
// caller's.
func NewSender(c *net.UDPConn, stream uint64, size int) *Sender {
	s := &Sender{conn: ipv4.NewPacketConn(c), stream: stream, msgs: make([]ipv4.Message, Batch)}
	for i := range s.msgs {
		s.msgs[i].Buffers = [][]byte{make([]byte, size)}
	}
	return s
}

// Send sends n datagrams, 1 to Batch. While the socket's buffer is full it waits, up to the socket's deadline.
func (s *Sender) Send(n int) error {
	for i := range s.msgs[:n] {
		Header{s.stream, s.next + uint64(i)}.Put(s.msgs[i].Buffers[0])
	}
	for pending := s.msgs[:n]; len(pending) > 0; {
		sent, err := s.conn.WriteBatch(pending, 0)
		if err != nil {
			return fmt.Errorf("send datagrams: %w", err)
		}
		s.next += uint64(sent)
		pending = pending[sent:]
	}
	return nil
}

// Sent returns how many datagrams the kernel took.
func (s *Sender) Sent() uint64 { return s.next }
