// Package rpc serves remote procedure calls as gRPC has them on the wire, by the HTTP/2 of net/http: one message in,
// any number of messages out, and a status at the end. Messages are bytes; what they mean is for Methods to know.
//
// The source is "gRPC over HTTP2" (PROTOCOL-HTTP2.md of the gRPC project). There are no compressed messages, no
// streams of requests and no retries in it, which its protocol leaves to servers.
package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Code is a status of gRPC.
type Code uint8

// The codes that are used here, by the numbers of gRPC's statuscodes.md.
const (
	Cancelled       Code = 1
	Unknown         Code = 2
	InvalidArgument Code = 3
	Exhausted       Code = 8
	Unimplemented   Code = 12
	Unavailable     Code = 14
)

// Error is an error with a Code. Any other error that a Method returns is Unknown.
type Error struct {
	Code Code
	Text string
}

func (e *Error) Error() string { return e.Text }

// Errorf returns an Error.
func Errorf(c Code, format string, args ...any) error { return &Error{c, fmt.Sprintf(format, args...)} }

// Method answers a request. It may send any number of messages, and the status is what it returns. request is its own.
type Method func(ctx context.Context, request []byte, out *Stream) error

// maxRequest is the longest request in bytes.
const maxRequest = 64 << 10

// Patience is how long a client may take nothing of what it is sent before its call ends.
const Patience = 10 * time.Minute

// Handler serves Methods by the path of their requests, "/package.Service/Method".
type Handler struct {
	methods map[string]Method
	calls   chan struct{}
}

// NewHandler makes a Handler that serves at most this many calls at once. Further ones are refused, and told.
func NewHandler(methods map[string]Method, most int) *Handler {
	return &Handler{methods: methods, calls: make(chan struct{}, most)}
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 2 || r.Method != http.MethodPost || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		http.Error(w, "only gRPC is spoken here", http.StatusUnsupportedMediaType)
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	out := &Stream{w: w, control: http.NewResponseController(w)}
	status := h.call(r, out)
	code := Code(0)
	if status != nil {
		code = Unknown
		var e *Error
		if errors.As(status, &e) {
			code = e.Code
		}
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", escape(status.Error()))
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", strconv.Itoa(int(code)))
}

func (h *Handler) call(r *http.Request, out *Stream) error {
	method := h.methods[r.URL.Path]
	if method == nil {
		return Errorf(Unimplemented, "this server has no %s", strings.TrimPrefix(r.URL.Path, "/"))
	}
	select {
	case h.calls <- struct{}{}:
		defer func() { <-h.calls }()
	default:
		return Errorf(Exhausted, "there are %d calls already, which is the most: end some", cap(h.calls))
	}
	request, err := read(r.Body)
	if err != nil {
		return err
	}
	return method(r.Context(), request, out)
}

// read reads the one message of a request.
func read(body io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(body, head[:]); err != nil {
		return nil, Errorf(InvalidArgument, "the request has no message")
	}
	n := binary.BigEndian.Uint32(head[1:])
	switch {
	case head[0] != 0:
		return nil, Errorf(Unimplemented, "the request is compressed, which is not known here")
	case n > maxRequest:
		return nil, Errorf(Exhausted, "the request has %d bytes, and %d at most are read", n, maxRequest)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(body, b); err != nil {
		return nil, Errorf(InvalidArgument, "the request is cut off after less than %d bytes", n)
	}
	return b, nil
}

// Stream takes the messages of an answer.
type Stream struct {
	w       io.Writer
	control *http.ResponseController
	buf     []byte
}

// Send sends a message. It waits for a client that is slow, for Patience at most. b is borrowed.
func (s *Stream) Send(b []byte) error {
	s.buf = append(s.buf[:0], 0)
	s.buf = binary.BigEndian.AppendUint32(s.buf, uint32(len(b)))
	s.buf = append(s.buf, b...)
	_ = s.control.SetWriteDeadline(time.Now().Add(Patience)) // of the stream; fails for a client that is gone
	if _, err := s.w.Write(s.buf); err != nil {
		return Errorf(Cancelled, "the client does not read any longer")
	}
	return nil
}

// Flush brings the client what was sent, if something is still under way to it. The first one brings the header, too.
func (s *Stream) Flush() error {
	_ = s.control.SetWriteDeadline(time.Now().Add(Patience))
	if err := s.control.Flush(); err != nil {
		return Errorf(Cancelled, "the client does not read any longer")
	}
	return nil
}

// escape writes a text as the trailer grpc-message has it: all but printable ASCII, and the percent sign, in percents.
func escape(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		if c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
