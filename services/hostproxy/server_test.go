package hostproxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a proxy before a cluster of one server, which says each line again.
type world struct {
	*Server
	at     net.Addr
	dialed chan netip.AddrPort
}

var pod = netip.MustParseAddr("10.244.1.3")

func newWorld(t *testing.T, addr string, o Options) *world {
	t.Helper()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	w := &world{dialed: make(chan netip.AddrPort, 16)}
	o.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		switch {
		case to.Addr() != pod:
			return nil, fmt.Errorf("connect to %s: %w", to, ErrOutside)
		case to.Port() != 80:
			return nil, fmt.Errorf("connect to %s: %w", to, ErrRefused)
		}
		w.dialed <- to
		return new(net.Dialer).DialContext(ctx, "tcp", echo.Addr().String())
	}
	o.Lookup = func(name string) []netip.Addr {
		return map[string][]netip.Addr{
			"web.shop": {netip.MustParseAddr("2001:db8::1"), pod}, "outside.shop": {netip.MustParseAddr("203.0.113.1")},
		}[name]
	}
	if o.MaxConns == 0 {
		o.MaxConns = 16
	}
	w.Server = New(o)
	l, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	w.at = l.Addr()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if n := w.Stats().Conns; n != 0 {
			t.Errorf("closed, yet it holds %d connections", n)
		}
	})
	return w
}

// ask sends text, ends its direction, and returns all that comes back: nothing when the connection was reset unheard.
func (w *world) ask(t *testing.T, text string) string {
	t.Helper()
	c, err := net.Dial(w.at.Network(), w.at.String())
	if errors.Is(err, syscall.ECONNRESET) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, text) // a client that is refused early may not be read to the end
	_ = c.(interface{ CloseWrite() error }).CloseWrite()
	got, _ := io.ReadAll(c)
	return string(got)
}

// TestProtocols: both protocols lead to the same, what is sent before the answer arrives, and each refusal has its
// code.
func TestProtocols(t *testing.T) {
	w := newWorld(t, "127.0.0.1:0", Options{})
	const hello, none = "\x05\x01\x00", "\x00\x01\x00\x00\x00\x00\x00\x00"
	name := func(s string) string { return "\x05\x01\x00\x03" + string(rune(len(s))) + s }
	for _, tt := range []struct{ what, say, want string }{
		{"SOCKS, an address", hello + "\x05\x01\x00\x01\x0a\xf4\x01\x03\x00\x50early", "\x05\x00\x05\x00" + none + "early"},
		{"SOCKS, a name", hello + name("web.shop") + "\x00\x50early", "\x05\x00\x05\x00" + none + "early"},
		{"SOCKS, an address as a name", hello + name("10.244.1.3") + "\x00\x50early", "\x05\x00\x05\x00" + none + "early"},
		{"SOCKS, IPv4 in IPv6", hello + "\x05\x01\x00\x04" + string(make([]byte, 10)) + "\xff\xff\x0a\xf4\x01\x03\x00\x50early", "\x05\x00\x05\x00" + none + "early"},
		{"SOCKS, outside", hello + "\x05\x01\x00\x01\x08\x08\x08\x08\x00\x50", "\x05\x00\x05\x02" + none},
		{"SOCKS, a name that leads outside", hello + name("outside.shop") + "\x00\x50", "\x05\x00\x05\x02" + none},
		{"SOCKS, no such name", hello + name("example.com") + "\x00\x50", "\x05\x00\x05\x04" + none},
		{"SOCKS, nobody there", hello + "\x05\x01\x00\x01\x0a\xf4\x01\x03\x00\x51", "\x05\x00\x05\x05" + none},
		{"SOCKS, BIND", hello + "\x05\x02\x00\x01\x0a\xf4\x01\x03\x00\x50", "\x05\x00\x05\x07" + none},
		{"SOCKS, a type that is none", hello + "\x05\x01\x00\x05\x0a\xf4\x01\x03\x00\x50", "\x05\x00\x05\x08" + none},
		{"SOCKS, port 0", hello + "\x05\x01\x00\x01\x0a\xf4\x01\x03\x00\x00", "\x05\x00\x05\x01" + none},
		{"SOCKS, a password", "\x05\x01\x02", "\x05\xff"},
		{"SOCKS, cut", hello + "\x05\x01\x00\x01\x0a", "\x05\x00\x05\x01" + none},
		{"SOCKS4", "\x04\x01\x00\x50\x0a\xf4\x01\x03\x00", "HTTP/1.1 502 "},
		{"HTTP", "CONNECT 10.244.1.3:80 HTTP/1.1\r\nHost: x\r\n\r\nearly", "HTTP/1.1 200 Connection established\r\n\r\nearly"},
		{"HTTP, a name", "CONNECT web.shop:80 HTTP/1.1\r\nHost: web.shop:80\r\n\r\nearly", "HTTP/1.1 200 Connection established\r\n\r\nearly"},
		{"HTTP, outside", "CONNECT 8.8.8.8:80 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 403 "},
		{"HTTP, the node itself", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 403 "},
		{"HTTP, nobody there", "CONNECT 10.244.1.3:81 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 502 "},
		{"HTTP, GET", "GET http://10.244.1.3/ HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405 "},
		{"HTTP, no port", "CONNECT web.shop HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 502 "},
		{"HTTP, a head without end", "CONNECT web.shop:80 HTTP/1.1\r\nX: " + strings.Repeat("x", 2*mostAsked), "HTTP/1.1 502 "},
		{"nothing", "", ""},
	} {
		got := w.ask(t, tt.say)
		if exact := !strings.HasPrefix(tt.want, "HTTP/1.1 4") && !strings.HasPrefix(tt.want, "HTTP/1.1 5"); exact && got != tt.want || !strings.HasPrefix(got, tt.want) {
			if tt.what == "HTTP, a head without end" && got == "" { // what it has not read has the kernel reset the connection
				continue
			}
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
	if s := w.Stats(); s.Served != 6 || s.Refused != 4 {
		t.Errorf("counted is %+v", s)
	}
}

// TestUsers: users who are not named are refused, over TCP and over a Unix socket.
func TestUsers(t *testing.T) {
	const ask = "CONNECT 10.244.1.3:80 HTTP/1.1\r\nHost: x\r\n\r\nhello"
	us := uint32(os.Getuid())
	for _, addr := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "proxy")} {
		if got := newWorld(t, addr, Options{UIDs: []uint32{us + 1, us}}).ask(t, ask); !strings.HasSuffix(got, "\r\n\r\nhello") {
			t.Errorf("%s, a user who is named: %q", addr, got)
		}
	}
	for _, addr := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "proxy")} {
		w := newWorld(t, addr, Options{UIDs: []uint32{us + 1}})
		if got := w.ask(t, ask); got != "" || len(w.dialed) != 0 {
			t.Errorf("%s, a user who is not named: %q", addr, got)
		}
	}
}

// TestUserOf compares the kernel's answer about a socket with what its list of all sockets says.
func TestUserOf(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			continue // a machine without IPv6
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		its, ours := far.RemoteAddr().(*net.TCPAddr).AddrPort(), far.LocalAddr().(*net.TCPAddr).AddrPort()
		slow, err := readKernel(its, ours)
		if err != nil || slow != uint32(os.Getuid()) {
			t.Errorf("%s: the list says user %d, %v", at, slow, err)
		}
		if quick, err := askKernel(its, ours); err == nil && quick != slow {
			t.Errorf("%s: the kernel says user %d, its list %d", at, quick, slow)
		}
		if got, err := userOf(far, askerFor(l.Addr())); err != nil || got != slow {
			t.Errorf("%s: user %d, %v", at, got, err)
		}
		_, _, _ = c.Close(), far.Close(), l.Close()
	}
	lines := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:1F90 0200007F:D431 01 00000000:00000000 00:00000000 00000000  4711        0 12345 1\n" +
		"   1: 0100007F:1F90 0300007F:D431 06 00000000:00000000 00:00000000 00000000     0        0 0 3\n"
	// The lines are of a little-endian machine.
	if one := [2]byte{1}; binary.NativeEndian.Uint16(one[:]) != 1 {
		return
	}
	uid, err := find(bufio.NewScanner(strings.NewReader(lines)), netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.2:54321"))
	if uid != 4711 || err != nil {
		t.Errorf("user %d, %v", uid, err)
	}
	uid, err = find(bufio.NewScanner(strings.NewReader(lines)), netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.3:54321"))
	if err == nil {
		t.Errorf("a socket that is closed is user %d's", uid)
	}
}

// TestClosedClient: a client that is gone before it is accepted is nobody's. The kernel says that its socket is user
// 0's, who may be one who is named.
func TestClosedClient(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asks := map[string]asker{"list": readKernel, "listener's": askerFor(l.Addr())}
	for name, ask := range asks {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "CONNECT 10.244.1.3:80 HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = c.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		if uid, err := userOf(far, ask); err == nil {
			t.Errorf("%s: a client that is gone is user %d", name, uid)
		}
	}
}

// TestAsker: the list of all sockets is read only where the kernel answers nothing about a socket that is there.
func TestAsker(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr()
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = askKernel(c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort())
	quick := func(a asker) bool { return reflect.ValueOf(a).Pointer() == reflect.ValueOf(askKernel).Pointer() }
	if has := err == nil; quick(askerFor(at)) != has {
		t.Errorf("the kernel has sock_diag: %v (%v), and it is asked: %v", has, err, quick(askerFor(at)))
	}
	_ = l.Close()
	if quick(askerFor(at)) {
		t.Error("nothing listens, and the kernel knows it")
	}
	// A socket that listens at a port is none from there to another address.
	l, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if uid, err := askKernel(l.Addr().(*net.TCPAddr).AddrPort(), netip.MustParseAddrPort("127.0.0.1:9")); err == nil {
		t.Errorf("a socket that listens is taken for a client's of user %d", uid)
	}
}

// TestShare: one user leaves to others as many connections as he has.
func TestShare(t *testing.T) {
	w := newWorld(t, "127.0.0.1:0", Options{MaxConns: 4})
	const ask = "CONNECT 10.244.1.3:80 HTTP/1.1\r\nHost: x\r\n\r\n"
	var served int
	for range 4 {
		c, err := net.Dial("tcp", w.at.String())
		if errors.Is(err, syscall.ECONNRESET) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, ask)
		if line, err := bufio.NewReader(c).ReadString('\n'); err == nil && strings.HasPrefix(line, "HTTP/1.1 200 ") {
			served++
		}
	}
	if served == 0 || served == 4 || w.Stats().Refused == 0 {
		t.Errorf("%d of 4 are served: %+v", served, w.Stats())
	}
}

func TestCheck(t *testing.T) {
	for addr, good := range map[string]bool{
		"127.0.0.1:1080": true, "[::1]:1080": true, "unix:/run/proxy.sock": true, "127.9.9.9:1": true,
		":1080": false, "0.0.0.0:1080": false, "192.0.2.1:1080": false, "localhost:1080": false, "unix:proxy.sock": false, "[::]:1": false, "": false,
	} {
		if err := Check(addr); (err == nil) != good {
			t.Errorf("%q: %v", addr, err)
		}
	}
}
