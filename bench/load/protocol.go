package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"tapestry.dev/tapestry/bench/load/datagram"
)

// Limits of a measurement, checked by both sides.
const (
	maxMessage  = 1 << 20 // bytes of a request or response
	maxDuration = time.Hour
	maxStreams  = 1024
	maxRate     = 10_000_000
)

// grace is how much longer the last bytes and answers may take when a measurement's time is up.
const grace = 10 * time.Second

// blockBytes is how much is written and read at a time: the default of iperf3 for TCP.
const blockBytes = 128 << 10

// kind is the kind of a measurement, on the wire.
type kind uint8

const (
	upload kind = 1 + iota
	download
	exchange
	exchangeOnce
	datagrams
	datagramExchange
)

// hello is the first message of every connection.
type hello struct {
	kind              kind
	request, response uint32        // bytes; exchange, exchangeOnce and datagramExchange
	duration          time.Duration // download
}

const (
	helloLen  = 24
	reportLen = 16
	magic     = "tpbench" // and the kind
)

// append adds h in wire form.
func (h hello) append(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, byte(h.kind))
	b = binary.BigEndian.AppendUint32(b, h.request)
	b = binary.BigEndian.AppendUint32(b, h.response)
	return binary.BigEndian.AppendUint64(b, uint64(h.duration))
}

func readHello(r io.Reader) (hello, error) {
	var b [helloLen]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return hello{}, fmt.Errorf("read hello: %w", err)
	}
	h := hello{
		kind:     kind(b[7]),
		request:  binary.BigEndian.Uint32(b[8:]),
		response: binary.BigEndian.Uint32(b[12:]),
		duration: time.Duration(binary.BigEndian.Uint64(b[16:])),
	}
	switch {
	case string(b[:7]) != magic:
		return hello{}, errors.New("read hello: the client does not speak this protocol")
	case h.kind < upload || h.kind > datagramExchange:
		return hello{}, fmt.Errorf("read hello: unknown kind %d", h.kind)
	case h.duration < 0 || h.duration > maxDuration:
		return hello{}, fmt.Errorf("read hello: duration %v, expected at most %v", h.duration, maxDuration)
	case h.request > maxMessage || h.response > maxMessage:
		return hello{}, fmt.Errorf("read hello: messages of %d and %d bytes, expected at most %d", h.request, h.response, maxMessage)
	case (h.kind == exchange || h.kind == exchangeOnce) && (h.request == 0 || h.response == 0):
		return hello{}, errors.New("read hello: expected messages of at least one byte")
	case h.kind == datagramExchange && (h.response < datagram.HeaderLen || h.response > datagram.MaxLen):
		return hello{}, fmt.Errorf("read hello: answers of %d bytes, expected %d to %d", h.response, datagram.HeaderLen, datagram.MaxLen)
	}
	return h, nil
}

// report is what a receiver counted.
type report struct {
	bytes   uint64
	elapsed time.Duration
}

func (r report) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, r.bytes)
	return binary.BigEndian.AppendUint64(b, uint64(r.elapsed))
}

func readReport(r io.Reader) (report, error) {
	var b [reportLen]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return report{}, fmt.Errorf("read the server's report: %w", err)
	}
	return report{binary.BigEndian.Uint64(b[:]), time.Duration(binary.BigEndian.Uint64(b[8:]))}, nil
}

// bitsPerSecond returns the rate, or 0 when nothing was received.
func (r report) bitsPerSecond() float64 {
	if r.elapsed <= 0 {
		return 0
	}
	return float64(r.bytes) * 8 / r.elapsed.Seconds()
}

// sendFor writes until d has passed, then sends a FIN.
func sendFor(c net.Conn, d time.Duration) error {
	block := make([]byte, blockBytes)
	if err := c.SetWriteDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	for {
		if _, err := c.Write(block); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return closeWrite(c)
}

func closeWrite(c net.Conn) error {
	if err := c.SetWriteDeadline(time.Now().Add(grace)); err != nil {
		return err
	}
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}

// receive counts bytes until the FIN. Its time runs from the call to the last byte.
func receive(c net.Conn) (report, error) {
	block := make([]byte, blockBytes)
	var r report
	start := time.Now()
	for {
		n, err := c.Read(block)
		if n > 0 {
			r.bytes += uint64(n)
			r.elapsed = time.Since(start)
		}
		if err == io.EOF {
			return r, nil
		} else if err != nil {
			return r, fmt.Errorf("receive: %w", err)
		}
	}
}
