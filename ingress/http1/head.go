package http1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// untilClose stands for the length of a body that ends with the connection.
const untilClose = -1

var errFraming = errors.New("it is not clear where the response ends")

// head is the head of a response, and what it says about the body and the connection.
type head struct {
	*http.Response
	length  int64 // of the body in bytes, or untilClose; without meaning when chunked
	chunked bool
	keep    bool // the server keeps the connection, and it is sure where the response ends
}

// parseHead reads the head of a response to a request with that method. It is used in place of net/http's, which fails
// on a Trailer header that names fields not allowed in trailers, ignores a Content-Length with a space before its
// colon, and adds a Cache-Control to a Pragma.
func parseHead(in *bufio.Reader, method string) (*head, error) {
	lines := textproto.NewReader(in)
	line, err := lines.ReadLine()
	if err != nil {
		return nil, noEOF(err)
	}
	resp, err := parseStatusLine(line)
	if err != nil {
		return nil, err
	}
	fields, err := lines.ReadMIMEHeader()
	if err != nil {
		return nil, noEOF(err)
	}
	resp.Header = http.Header(fields)
	tidy(resp.Header)
	h := &head{Response: resp, keep: keepsAlive(resp)}
	if err := h.frame(method); err != nil {
		return nil, err
	}
	if h.chunked {
		h.announce()
	}
	return h, nil
}

// parseStatusLine parses a line like "HTTP/1.1 200 OK". The reason may be missing, the code may not. RFC 9110 section
// 15 has codes from 100 to 599, but codes up to 999 are in use.
func parseStatusLine(line string) (*http.Response, error) {
	proto, status, _ := strings.Cut(line, " ")
	resp := &http.Response{Proto: proto, Status: strings.TrimLeft(status, " ")}
	var ok bool
	if resp.ProtoMajor, resp.ProtoMinor, ok = http.ParseHTTPVersion(proto); !ok || resp.ProtoMajor != 1 {
		return nil, fmt.Errorf("the status line is %.40q: expected HTTP/1.1 and a status code", line)
	}
	code, _, _ := strings.Cut(resp.Status, " ")
	n, err := strconv.ParseUint(code, 10, 16)
	if err != nil || n < 100 || n > 999 || len(code) != 3 {
		return nil, fmt.Errorf("the status code is %.10q: expected a number from 100 to 999", code)
	}
	resp.StatusCode = int(n)
	return resp, nil
}

// tidy removes spaces between a field's name and its colon, as RFC 9112 section 5.1 requires for responses, and removes
// fields with other spaces in their names.
func tidy(h http.Header) {
	for name, values := range h {
		if !strings.Contains(name, " ") { // textproto refuses other names that are not tokens
			continue
		}
		delete(h, name)
		if trimmed := strings.TrimRight(name, " "); httpguts.ValidHeaderFieldName(trimmed) {
			key := textproto.CanonicalMIMEHeaderKey(trimmed)
			h[key] = append(h[key], values...)
		}
	}
}

// keepsAlive reports whether the server keeps the connection (RFC 9112 section 9.3).
func keepsAlive(resp *http.Response) bool {
	options := resp.Header["Connection"]
	if httpguts.HeaderValuesContainsToken(options, "close") {
		return false
	}
	return resp.ProtoMinor > 0 || httpguts.HeaderValuesContainsToken(options, "keep-alive")
}

// frame finds out where the body ends (RFC 9112 section 6.3). It sets keep to false when the head leaves that in doubt.
func (h *head) frame(method string) error {
	codings, coded := h.Header["Transfer-Encoding"]
	delete(h.Header, "Transfer-Encoding")
	length, err := contentLength(h.Header)
	if err != nil {
		return err
	}
	switch {
	case h.StatusCode < 200:
		return nil
	case h.StatusCode == http.StatusNoContent:
		h.keep = h.keep && !coded && length <= 0
		return nil
	case h.StatusCode == http.StatusNotModified:
		h.keep = h.keep && !coded
		return nil
	case method == http.MethodHead:
		return nil
	case coded && h.ProtoMinor == 0: // RFC 9112 section 6.1: HTTP/1.0 has none, so the framing is faulty
		h.keep, coded = false, false
	}
	if h.length = length; !coded {
		h.keep = h.keep && length >= 0
		return nil
	}
	if len(codings) != 1 || !strings.EqualFold(codings[0], "chunked") {
		return fmt.Errorf("%w: its Transfer-Encoding is %.80q, expected chunked once", errFraming, codings)
	}
	if h.chunked = true; length >= 0 { // RFC 9112 section 6.1: perhaps an attempt to split responses
		h.keep = false
		delete(h.Header, "Content-Length")
	}
	return nil
}

// contentLength returns the Content-Length, untilClose when there is none. It reduces a repeated one to one in h.
func contentLength(h http.Header) (int64, error) {
	values := h["Content-Length"]
	if len(values) == 0 {
		return untilClose, nil
	}
	for _, v := range values[1:] {
		if v != values[0] {
			return 0, fmt.Errorf("%w: its Content-Length is %.80q", errFraming, values)
		}
	}
	n, err := strconv.ParseUint(values[0], 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: its Content-Length is %.40q", errFraming, values[0])
	}
	// The number is written anew because some programs read a leading zero as octal.
	if text := strconv.FormatUint(n, 10); len(values) > 1 || text != values[0] {
		h["Content-Length"] = []string{text}
	}
	return int64(n), nil
}

// announce makes a Trailer with the names that the server announces, and no values. It leaves out names of framing
// headers, which are not allowed in trailers (RFC 9110 section 6.5.1).
func (h *head) announce() {
	for _, list := range h.Header["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			key := textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name))
			if framing[key] || !httpguts.ValidHeaderFieldName(key) {
				continue
			}
			if h.Trailer == nil {
				h.Trailer = http.Header{}
			}
			h.Trailer[key] = nil
		}
	}
	delete(h.Header, "Trailer")
}

// sized reads a body of a known length.
type sized struct {
	in   *bufio.Reader
	left int64
}

var _ io.Reader = (*sized)(nil)

func (s *sized) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.in.Read(p[:min(int64(len(p)), s.left)])
	if s.left -= int64(n); s.left == 0 {
		return n, io.EOF
	}
	return n, noEOF(err)
}
