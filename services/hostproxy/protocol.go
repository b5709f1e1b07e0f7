package hostproxy

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
)

// target is where a client wants to go: an address, or a name if addr is invalid.
type target struct {
	addr netip.Addr
	name string
	port uint16
}

// protocol is one of the two that clients speak.
type protocol interface {
	// read reads what the client wants. w is for what has to be said meanwhile.
	read(r *bufio.Reader, w io.Writer) (target, error)
	// answer tells the client how it went; nil means that it is connected.
	answer(w io.Writer, err error) error
}

// mostAsked is how many bytes a client may send before it is connected. More than that is for the far end.
const mostAsked = 16 << 10

// protocolOf says which protocol begins with the first byte.
func protocolOf(r *bufio.Reader) (protocol, error) {
	first, err := r.Peek(1)
	switch {
	case err != nil:
		return nil, fmt.Errorf("a client has said nothing: %w", err)
	case first[0] == socksVersion:
		return socks{}, nil
	}
	return connect{}, nil
}

// targetOf returns the target of a host, which is an address or a name.
func targetOf(host string, port uint16) (target, error) {
	if port == 0 {
		return target{}, errors.New("port 0 is no port")
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return target{}, fmt.Errorf("%q is of one link alone: %w", host, ErrOutside)
		}
		return target{addr: a.Unmap(), port: port}, nil
	}
	return target{name: host, port: port}, nil
}

// socks is SOCKS5 (RFC 1928).
type socks struct{}

const (
	socksVersion = 5
	socksConnect = 1

	// The methods of RFC 1928, 3.
	socksOpen, socksNone = 0, 0xff
	// The types of addresses of RFC 1928, 5.
	socksIPv4, socksName, socksIPv6 = 1, 3, 4
	// The replies of RFC 1928, 6.
	socksFailure, socksNotAllowed, socksNoHost, socksRefused, socksNoCommand, socksNoType = 1, 2, 4, 5, 7, 8
)

var (
	errCommand = errors.New("only CONNECT is known")
	errType    = errors.New("the type of the address is unknown")
	errMethod  = errors.New("the client wants to authenticate itself, and nobody here asks for that")
)

// read implements protocol.
func (socks) read(r *bufio.Reader, w io.Writer) (target, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return target{}, err
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(r, methods); err != nil {
		return target{}, err
	}
	method := byte(socksNone)
	for _, m := range methods {
		if m == socksOpen {
			method = socksOpen
		}
	}
	if _, err := w.Write([]byte{socksVersion, method}); err != nil {
		return target{}, err
	}
	if method == socksNone {
		return target{}, errMethod
	}
	var ask [4]byte
	if _, err := io.ReadFull(r, ask[:]); err != nil {
		return target{}, err
	}
	size := map[byte]int{socksIPv4: 4, socksIPv6: 16}[ask[3]]
	if ask[3] == socksName {
		n, err := r.ReadByte()
		if err != nil {
			return target{}, err
		}
		size = int(n)
	}
	switch {
	case ask[0] != socksVersion:
		return target{}, fmt.Errorf("version %d of SOCKS is unknown", ask[0])
	case size == 0:
		return target{}, errType
	}
	rest := make([]byte, size+2)
	if _, err := io.ReadFull(r, rest); err != nil {
		return target{}, err
	}
	if ask[1] != socksConnect {
		return target{}, errCommand
	}
	port := binary.BigEndian.Uint16(rest[size:])
	if a, ok := netip.AddrFromSlice(rest[:size]); ok && ask[3] != socksName {
		return targetOf(a.String(), port)
	}
	return targetOf(string(rest[:size]), port)
}

// answer implements protocol.
func (socks) answer(w io.Writer, err error) error {
	code := byte(socksFailure)
	switch {
	case err == nil:
		code = 0
	case errors.Is(err, errMethod): // the client has been told
		return nil
	case errors.Is(err, ErrOutside):
		code = socksNotAllowed
	case errors.Is(err, errUnknown):
		code = socksNoHost
	case errors.Is(err, ErrRefused):
		code = socksRefused
	case errors.Is(err, errCommand):
		code = socksNoCommand
	case errors.Is(err, errType):
		code = socksNoType
	}
	// The address at which the far end sees the client is nobody's business.
	_, werr := w.Write([]byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0})
	return werr
}

// connect is the method CONNECT of HTTP/1.1 (RFC 9110, 9.3.6).
type connect struct{}

var errMethodHTTP = errors.New("only the method CONNECT is known: have the client tunnel (curl --proxytunnel)")

// read implements protocol.
func (connect) read(r *bufio.Reader, _ io.Writer) (target, error) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return target{}, fmt.Errorf("a client speaks neither SOCKS5 nor HTTP: %w", err)
	}
	if req.Method != http.MethodConnect {
		return target{}, errMethodHTTP
	}
	host, text, err := net.SplitHostPort(req.RequestURI)
	if err != nil {
		return target{}, fmt.Errorf("CONNECT %q: expected HOST:PORT", req.RequestURI)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return target{}, fmt.Errorf("CONNECT %q: the port is none", req.RequestURI)
	}
	return targetOf(host, uint16(port))
}

// answer implements protocol.
func (connect) answer(w io.Writer, err error) error {
	if err == nil {
		_, err = io.WriteString(w, "HTTP/1.1 200 Connection established\r\n\r\n")
		return err
	}
	status := http.StatusBadGateway
	switch {
	case errors.Is(err, ErrOutside):
		status = http.StatusForbidden
	case errors.Is(err, errMethodHTTP):
		status = http.StatusMethodNotAllowed
	}
	// No byte of the text is the client's: Error quotes what came from it.
	text := http.StatusText(status) + "\n"
	_, werr := fmt.Fprintf(w, "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(text), text)
	return werr
}
