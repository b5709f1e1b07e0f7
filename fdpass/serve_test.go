package fdpass

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds the wait for what must happen; it is long, for busy machines.
const testPatience = 30 * time.Second

// logBuffer collects the log lines of several goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// count returns how many lines contain a text.
func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte(text))
}

// world is a server whose clients belong to whichever user the test says.
type world struct {
	t    *testing.T
	path string
	log  logBuffer
	uid  atomic.Uint32 // the user of the next connection
	s    *server
	ln   *net.UnixListener
	// known is the number of connections that the server has looked at.
	known   atomic.Int32
	running bool
}

// echo answers every message with the number of descriptors that came with it.
func echo(_ context.Context, c *Conn) {
	for {
		var v json.RawMessage
		fds, err := c.Receive(&v)
		CloseAll(fds)
		if err != nil || c.Answer(len(fds)) != nil {
			return
		}
	}
}

func newWorld(t *testing.T, o Options) *world {
	w := &world{t: t, path: filepath.Join(t.TempDir(), "s")}
	var err error
	if w.ln, err = Listen(w.path, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Log = slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.s = newServer(o, echo)
	w.s.peerOf = func(*net.UnixConn) (Cred, error) {
		defer w.known.Add(1)
		return Cred{UID: w.uid.Load()}, nil
	}
	return w
}

// run serves until the test ends.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.s.serve(ctx, w.ln) }()
	w.running = true
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

// connect connects as a user, and returns when the server has looked at the connection.
func (w *world) connect(uid uint32) *Conn {
	w.t.Helper()
	w.uid.Store(uid)
	before := w.known.Load()
	c, err := Dial(w.t.Context(), w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	if w.running {
		until(w.t, "the server knows who came", func() bool { return w.known.Load() > before })
	}
	return c
}

// ask returns the answer, or the text of the refusal.
func (w *world) ask(c *Conn, fds ...int) (int, string) {
	w.t.Helper()
	c.conn.SetDeadline(time.Now().Add(testPatience))
	var answer json.RawMessage
	if _, err := c.Call(w.t.Context(), "hello", &answer, fds...); err != nil {
		return 0, "no answer: " + err.Error()
	}
	var n int
	var r Refusal
	if json.Unmarshal(answer, &n) != nil {
		_ = json.Unmarshal(answer, &r)
	}
	return n, r.Error
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(testPatience); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// Hundreds of silent strangers keep nobody from being served, and cost a bounded number of descriptors.
func TestFloodOfStrangers(t *testing.T) {
	w := newWorld(t, Options{UIDs: []uint32{1}})
	w.run()
	before := openFiles(t)
	var flood []*Conn
	for range 200 {
		flood = append(flood, w.connect(2))
		c := w.connect(1)
		if _, refused := w.ask(c); refused != "" {
			t.Fatalf("user 1 among %d strangers: %s", len(flood), refused)
		}
		c.Close()
	}
	until(t, "the server has let go of all but some strangers", func() bool { return openFiles(t) <= before+len(flood)+maxStranger })
	if n := w.log.count("refused a connection"); n != 1 {
		t.Errorf("%d lines were logged, want 1", n)
	}
	for _, c := range flood {
		c.Close()
	}
	until(t, "nothing is left of them", func() bool { return openFiles(t) <= before })
}

// A stranger's descriptors never become the server's: closing one can take as long as its file system likes.
func TestDescriptorsOfStrangers(t *testing.T) {
	w := newWorld(t, Options{UIDs: []uint32{1}})
	w.run()
	r, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := Dup(pw)
	if err != nil {
		t.Fatal(err)
	}
	pw.Close()
	c := w.connect(2)
	if _, refused := w.ask(c, slices.Repeat([]int{fd}, MaxFiles)...); !strings.Contains(refused, "user 2 may not use "+w.path) {
		t.Errorf("got %q", refused)
	}
	unix.Close(fd)
	r.SetReadDeadline(time.Now().Add(testPatience))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("somebody has the descriptors open: %v", err)
	}
}

// A user who may connect, and holds as many connections as it can, shuts nobody else out, and is told why further ones
// are refused.
func TestShareOfUsers(t *testing.T) {
	w := newWorld(t, Options{UIDs: []uint32{1, 2}})
	w.run()
	var silent []*Conn
	for range (defaultMost - maxStranger) / 2 {
		c := w.connect(1)
		if _, refused := w.ask(c); refused != "" { // the connection is silent from now on
			t.Fatalf("at %d: %s", len(silent), refused)
		}
		silent = append(silent, c)
	}
	if _, refused := w.ask(w.connect(1)); !strings.Contains(refused, "user 1 has 128 connections") {
		t.Errorf("one connection more is told %q", refused)
	}
	if _, refused := w.ask(w.connect(2)); refused != "" {
		t.Errorf("the other user: %s", refused)
	}
	silent[0].Close()
	until(t, "there is room again", func() bool {
		_, refused := w.ask(w.connect(1))
		return refused == ""
	})
}

// Inside a user namespace all users whom it does not know have one number; a user with that number may be anybody.
func TestUnknownUser(t *testing.T) {
	w := newWorld(t, Options{UIDs: []uint32{1, 65534}})
	w.s.unknown = users{65534, true}
	w.run()
	if _, refused := w.ask(w.connect(65534)); !strings.Contains(refused, "all users whom this namespace does not know") {
		t.Errorf("got %q", refused)
	}
	if _, refused := w.ask(w.connect(1)); refused != "" {
		t.Error(refused)
	}
}

// A server that wants no descriptors accepts none, however many come.
func TestNoFiles(t *testing.T) {
	w := newWorld(t, Options{UIDs: []uint32{1}, NoFiles: true})
	w.run()
	c := w.connect(1)
	if n, refused := w.ask(c, slices.Repeat([]int{1}, MaxFiles)...); n != 0 || refused != "" {
		t.Errorf("the server accepted %d: %s", n, refused)
	}
	if n, refused := w.ask(c); n != 0 || refused != "" {
		t.Errorf("after that: %d, %s", n, refused)
	}
}

// A process that has no descriptor left continues when it has one again, and logs one warning.
func TestOutOfDescriptors(t *testing.T) {
	w := newWorld(t, Options{UIDs: []uint32{1}})
	c := w.connect(1) // nobody accepts yet
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	w.run()
	until(t, "the server has tried twice", func() bool { return w.log.count("cannot accept") >= 2 })
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if n := w.log.count("level=WARN"); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
	if _, refused := w.ask(c); refused != "" {
		t.Error(refused)
	}
}

// The bound on connections is shared out among users, and each has one at least.
func TestMost(t *testing.T) {
	for _, tt := range []struct{ most, users, want int }{{0, 2, 128}, {32, 2, 12}, {32, 3, 8}, {1, 2, 1}} {
		if got := newServer(Options{Most: tt.most, UIDs: []uint32{1, 2, 3}[:tt.users]}, echo).share(); got != tt.want {
			t.Errorf("of %d, each of %d users has %d, want %d", tt.most, tt.users, got, tt.want)
		}
	}
}
