package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
)

// maxSizeLine is the length in bytes of the longest line with a chunk's size, extensions included.
const maxSizeLine = 4 << 10

var errChunk = errors.New("a chunk of the response is malformed")

// chunked reads a chunked body (RFC 9112 section 7.1). The reader of net/http waits for a whole chunk or a full buffer.
type chunked struct {
	in      *bufio.Reader
	left    uint64 // bytes of the chunk that were not read yet
	inside  bool   // a chunk has begun; when left is 0, the end of its data is still to be read
	trailer func() error
	err     error
}

var _ io.Reader = (*chunked)(nil)

// Read returns the bytes of one chunk that are there. It waits when there are none.
func (c *chunked) Read(p []byte) (int, error) {
	if c.err == nil && c.left == 0 {
		c.err = c.next()
	}
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.in.Read(p[:min(uint64(len(p)), c.left)])
	c.left -= uint64(n)
	if c.err = noEOF(err); n > 0 {
		return n, nil
	}
	return n, c.err
}

// next reads up to the data of the next chunk; io.EOF after the last chunk and the trailer.
func (c *chunked) next() error {
	if c.inside {
		var end [2]byte
		if _, err := io.ReadFull(c.in, end[:]); err != nil {
			return noEOF(err)
		}
		if string(end[:]) != "\r\n" {
			return fmt.Errorf("%w: its data is followed by %q", errChunk, end)
		}
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return noEOF(err)
	}
	// Some programs take a lone LF for the end of a line, and others do not.
	if len(line) > maxSizeLine || !bytes.HasSuffix(line, []byte("\r\n")) {
		return fmt.Errorf("%w: its size is not a line of its own", errChunk)
	}
	digits, _, _ := bytes.Cut(line[:len(line)-2], []byte(";"))
	digits = bytes.TrimRight(digits, " \t")
	if c.left, err = strconv.ParseUint(string(digits), 16, 63); err != nil {
		return fmt.Errorf("%w: its size is %q", errChunk, digits)
	}
	if c.inside = true; c.left == 0 {
		if err := c.trailer(); err != nil {
			return noEOF(err)
		}
		return io.EOF
	}
	return nil
}

// ready reports whether Read returns without waiting.
func (c *chunked) ready() bool {
	there, _ := c.in.Peek(c.in.Buffered())
	if c.err != nil || c.left > 0 {
		return c.err != nil || len(there) > 0
	}
	if c.inside {
		there = there[min(2, len(there)):]
	}
	end := bytes.IndexByte(there, '\n')
	if end < 0 {
		return false
	}
	if there[0] == '0' { // perhaps the last chunk, which ends with an empty line
		return bytes.Contains(there, []byte("\r\n\r\n"))
	}
	return len(there) > end+1
}

// noEOF returns io.ErrUnexpectedEOF in place of io.EOF.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readTrailer reads the trailer of a response, which may be as large as a head.
func (x *exchange) readTrailer(resp *http.Response) error {
	x.left = maxHead
	fields, err := textproto.NewReader(x.in).ReadMIMEHeader()
	if err != nil {
		return fmt.Errorf("read the trailer of the response: %w", err)
	}
	for name, values := range fields {
		if framing[name] {
			continue
		}
		if resp.Trailer == nil {
			resp.Trailer = http.Header{}
		}
		resp.Trailer[name] = values
	}
	return nil
}
