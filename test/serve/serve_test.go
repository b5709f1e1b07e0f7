package serve

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"tapestry.dev/tapestry/cmd/tapestry/connectivity/talk"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
	"tapestry.dev/tapestry/test/userns"
)

// The tests have a network of their own, in which every port is free.
func TestMain(m *testing.M) { userns.Main(m) }

func run(t *testing.T, c Config) {
	t.Helper()
	c.Name, c.Log = "p", slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for _, port := range append(append([]int{}, c.HTTP...), c.TCP...) {
		dial(t, "tcp", "127.0.0.1:"+strconv.Itoa(port)).Close()
	}
}

func dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	deadline := time.Now().Add(await.Patience)
	for {
		c, err := net.Dial(network, addr)
		if err == nil {
			if err := c.SetDeadline(deadline); err != nil {
				t.Fatal(err)
			}
			return c
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func decode(t *testing.T, line string) Answer {
	t.Helper()
	var a Answer
	if err := json.Unmarshal([]byte(line), &a); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return a
}

func TestTCP(t *testing.T) {
	run(t, Config{TCP: []int{9000}})
	for _, addr := range []string{"127.0.0.1:9000", "[::1]:9000"} {
		c := dial(t, "tcp", addr)
		defer c.Close()
		lines := bufio.NewReader(c)
		for _, got := range []string{"", "hello", "again"} {
			if got != "" {
				if _, err := io.WriteString(c, got+"\n"); err != nil {
					t.Fatal(err)
				}
			}
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			want := talk.Answer{Pod: "p", Client: c.LocalAddr().String(), Server: addr, Proto: "tcp", Got: got}
			if a := decode(t, line).Answer; a != want {
				t.Errorf("got %+v, want %+v", a, want)
			}
		}
	}
}

// The answer comes from the address that was asked, even on a machine with several addresses. A connected socket
// accepts no other.
func TestUDP(t *testing.T) {
	run(t, Config{UDP: []int{9000}})
	for _, addr := range []string{"127.0.0.1:9000", "127.0.0.2:9000", "[::1]:9000"} {
		var line string
		for deadline := time.Now().Add(await.Patience); line == "" && time.Now().Before(deadline); {
			c := dial(t, "udp", addr)
			if _, err := io.WriteString(c, "ping\n"); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1000)
			if n, err := c.Read(buf); err == nil { // else it does not listen yet
				line = string(buf[:n])
				if a := decode(t, line); a.Client != c.LocalAddr().String() || a.Server != addr || a.Got != "ping" || a.Proto != "udp" {
					t.Errorf("got %+v", a)
				}
			}
			c.Close()
		}
		if line == "" {
			t.Errorf("%s does not answer", addr)
		}
	}
}

func get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://127.0.0.1:8080" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestHTTP(t *testing.T) {
	run(t, Config{HTTP: []int{8080}})
	for _, test := range []struct {
		path   string
		status int
		want   string
	}{
		{"/some/path?q=1", 200, `"path":"/some/path?q=1"`},
		{"/health", 200, `"pod":"p"`},
		{"/unready", 200, ""},
		{"/health", 503, ""},
		{"/ready", 200, ""},
		{"/health", 200, ""},
		{"/status/418", 418, ""},
		{"/status/x", 400, "expected"},
		{"/sleep?ms=1", 200, `"pod":"p"`},
		{"/sleep?ms=-1", 400, "expected"},
	} {
		if status, body := get(t, test.path); status != test.status || !strings.Contains(body, test.want) {
			t.Errorf("%s: %d %q, want %d with %q", test.path, status, body, test.status, test.want)
		}
	}
	req, err := http.NewRequest(http.MethodPost, "http://127.0.0.1:8080/x", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Test", "y")
	req.Host = "a.example"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if a := decode(t, string(b)); a.Method != "POST" || a.Got != "body" || a.Host != "a.example" || a.Header.Get("X-Test") != "y" || a.Proto != "HTTP/1.1" {
		t.Errorf("got %+v", a)
	}
}

func TestStream(t *testing.T) {
	run(t, Config{HTTP: []int{8080}})
	for _, test := range []struct {
		path string
		want int
	}{{"/stream?bytes=0", 0}, {"/stream?bytes=100000", 100000}, {"/stream?bytes=1000&ms=50", 1000}, {"/stream?bytes=3&ms=50", 3}, {"/stream", 1 << 20}} {
		if status, body := get(t, test.path); status != 200 || len(body) != test.want {
			t.Errorf("%s: %d with %d bytes, want %d", test.path, status, len(body), test.want)
		}
	}
}

func TestHTTP2(t *testing.T) {
	run(t, Config{HTTP: []int{8080}})
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	client := http.Client{Transport: &http.Transport{Protocols: &protocols}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://127.0.0.1:8080/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if a := decode(t, string(b)); a.Proto != "HTTP/2.0" {
		t.Errorf("got %+v", a)
	}
}

func TestWebSocket(t *testing.T) {
	run(t, Config{HTTP: []int{8080}})
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, "ws://127.0.0.1:8080/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body != nil {
		resp.Body.Close()
	}
	defer c.CloseNow()
	for _, msg := range []string{"one", "two"} {
		if err := c.Write(ctx, websocket.MessageText, []byte(msg)); err != nil {
			t.Fatal(err)
		}
		_, b, err := c.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if a := decode(t, string(b)); a.Got != msg || a.Proto != "websocket" || a.Pod != "p" {
			t.Errorf("got %+v", a)
		}
	}
}

func TestPortTaken(t *testing.T) {
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	err = Run(context.Background(), Config{HTTP: []int{port}, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
}

func TestNameIsHostName(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	port := int(freeport.Of(t))
	go func() { done <- Run(ctx, Config{TCP: []int{port}, Log: slog.New(slog.DiscardHandler)}) }()
	c := dial(t, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if a := decode(t, line); a.Pod != name {
		t.Errorf("answers as %s, want %s", a.Pod, name)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
