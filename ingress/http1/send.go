package http1

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrEnough is returned by a Request's Body that needs no longer be sent, because the response came without the rest.
var ErrEnough = errors.New("no more of the body is wanted")

// framing lists the headers that say where messages end and which host they are for. They follow from a Request's other
// fields.
var framing = map[string]bool{"Host": true, "Content-Length": true, "Transfer-Encoding": true, "Trailer": true}

var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 4<<10) }}

// writeHead sends everything before the body.
func (x *exchange) writeHead() error {
	r := x.request
	w := writers.Get().(*bufio.Writer)
	w.Reset(x.conn.Conn)
	defer func() {
		w.Reset(nil)
		writers.Put(w)
	}()
	for _, s := range [...]string{r.Method, " ", r.Target, " HTTP/1.1\r\nHost: ", r.Host, "\r\n"} {
		_, _ = w.WriteString(s) // Flush returns the first error of all
	}
	_ = r.Header.WriteSubset(w, framing)
	switch {
	case r.Body != nil && r.Length < 0:
		_, _ = w.WriteString("Transfer-Encoding: chunked\r\n")
		if len(r.Trailer) > 0 {
			_, _ = w.WriteString("Trailer: " + strings.Join(keys(r.Trailer), ", ") + "\r\n")
		}
	case r.Body != nil || wantsLength(r.Method):
		_, _ = w.WriteString("Content-Length: " + strconv.FormatInt(max(0, r.Length), 10) + "\r\n")
	}
	_, _ = w.WriteString("\r\n")
	return w.Flush()
}

func keys(h http.Header) []string {
	list := make([]string, 0, len(h))
	for k := range h {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

// wantsLength reports whether a request without body has a Content-Length of 0, as requests have whose method gives a
// body a meaning (RFC 9110 section 8.6).
func wantsLength(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

// chunkHead is the room in bytes for a chunk's size in hexadecimal digits and the end of its line.
const chunkHead = 8 + 2

var sendBuffers = sync.Pool{New: func() any { return new([chunkHead + bufferBytes + 2]byte) }}

// send sends the body, piece by piece as it can be read, and closes x.sending.
func (x *exchange) send() {
	defer close(x.sending)
	err := x.sendBody()
	if err == nil {
		x.awaitResponse()
		return
	}
	x.mu.Lock()
	x.sendErr = err
	x.mu.Unlock()
	switch {
	case errors.Is(err, ErrEnough):
	case errors.As(err, new(*SendError)): // the server must see that the request is not whole
		x.conn.Conn.Close()
	default: // the server may have answered before it stopped reading
		x.awaitResponse()
	}
}

func (x *exchange) sendBody() error {
	buf := sendBuffers.Get().(*[chunkHead + bufferBytes + 2]byte)
	defer sendBuffers.Put(buf)
	left := x.request.Length
	for left != 0 {
		data := buf[chunkHead : chunkHead+bufferBytes]
		if left > 0 {
			data = data[:min(int64(len(data)), left)]
		}
		n, err := x.request.Body.Read(data)
		if n > 0 {
			if err := x.sendPiece(buf, n); err != nil {
				return err
			}
			if left > 0 {
				left -= int64(n)
			}
		}
		switch {
		case err == nil, err == io.EOF && left == 0:
		case err == io.EOF && left < 0:
			return x.sendEnd()
		case errors.Is(err, ErrEnough):
			return err
		case err == io.EOF:
			return &SendError{io.ErrUnexpectedEOF}
		default:
			return &SendError{err}
		}
	}
	return nil
}

// sendPiece sends the n bytes in buf that follow the room for a chunk's head, as a chunk when the length is not known.
func (x *exchange) sendPiece(buf *[chunkHead + bufferBytes + 2]byte, n int) error {
	from, to := chunkHead, chunkHead+n
	if x.request.Length < 0 {
		size := strconv.AppendInt(make([]byte, 0, 16), int64(n), 16)
		from -= len(size) + 2
		copy(buf[from:], size)
		copy(buf[chunkHead-2:], "\r\n")
		copy(buf[to:], "\r\n")
		to += 2
	}
	return x.write(buf[from:to])
}

// sendEnd sends the last chunk, and the trailer.
func (x *exchange) sendEnd() error {
	var b strings.Builder
	b.WriteString("0\r\n")
	_ = x.request.Trailer.WriteSubset(&b, framing)
	b.WriteString("\r\n")
	return x.write([]byte(b.String()))
}

// write sends p. It fails when the server does not accept p within ResponseTimeout.
func (x *exchange) write(p []byte) error {
	if limit := x.conn.client.o.ResponseTimeout; limit > 0 {
		_ = x.conn.SetWriteDeadline(time.Now().Add(limit))
	}
	_, err := x.conn.Conn.Write(p)
	return err
}
