package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// How a connection failed, as its client sees it.
const (
	refused     = "refused"             // its SYN was answered by a reset
	unreachable = "unreachable"         // its SYN was answered by an ICMP error
	unanswered  = "no answer"           // nobody answered in time
	reset       = "reset before answer" // it was open, and was reset before the server said anything
	ended       = "ended before answer" // the same, in order
	cut         = "answer cut"          // the server had said something
)

// lossKind returns how a connection failed. heard is how many bytes of the server its client got.
func lossKind(err error, heard int) string {
	var dial *net.OpError
	switch {
	case heard > 0:
		return cut
	case errors.Is(err, os.ErrDeadlineExceeded):
		return unanswered
	case errors.Is(err, unix.ECONNREFUSED):
		return refused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ended
	case errors.As(err, &dial) && dial.Op == "dial":
		return unreachable
	}
	return err.Error()
}

// heard counts what is read.
type heard struct {
	net.Conn
	n int
}

func (h *heard) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.n += n
	return n, err
}

// loss is a connection that failed.
type loss struct {
	kind         string
	began, ended time.Time
}

// losses has every connection of one way.
type losses struct {
	mu   sync.Mutex
	took []time.Duration // those that did not fail
	lost []loss
}

func (l *losses) add(began time.Time, kind string) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if kind == "" {
		l.took = append(l.took, now.Sub(began))
	} else {
		l.lost = append(l.lost, loss{kind, began, now})
	}
}

func (l *losses) asked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.took) + len(l.lost)
}

// String is for when nobody adds any more.
func (l *losses) String() string {
	slices.Sort(l.took)
	at := func(part float64) time.Duration {
		if len(l.took) == 0 {
			return 0
		}
		return l.took[min(len(l.took)-1, int(part*float64(len(l.took))))].Round(100 * time.Microsecond)
	}
	kinds := map[string]int{}
	for _, one := range l.lost {
		kinds[one.kind]++
	}
	// A second is how long a kernel waits before it repeats a SYN.
	slow, _ := slices.BinarySearch(l.took, 900*time.Millisecond)
	return fmt.Sprintf("%d of %d failed %v; p50 %v, p99 %v, p99.9 %v, slowest %v, %d took 0.9 s or more",
		len(l.lost), len(l.lost)+len(l.took), kinds, at(0.5), at(0.99), at(0.999), at(1), len(l.took)-slow)
}

// ends is what is known of the ends of pods, by when.
type ends struct {
	mu      sync.Mutex
	moments []moment
}

type moment struct {
	at        time.Time
	pod, what string
}

func (e *ends) add(m moment) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.moments = append(e.moments, m)
}

// around returns what happened within half a second before and after a time.
func (e *ends) around(at time.Time) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var near []moment
	for _, m := range e.moments {
		if d := at.Sub(m.at); d > -500*time.Millisecond && d < 500*time.Millisecond {
			near = append(near, m)
		}
	}
	slices.SortFunc(near, func(a, b moment) int { return a.at.Compare(b.at) })
	var text []string
	for _, m := range near {
		text = append(text, fmt.Sprintf("%s of %s %+.1f ms", m.what, m.pod[max(0, len(m.pod)-5):], float64(m.at.Sub(at).Microseconds())/1000))
	}
	return strings.Join(text, ", ")
}

// watchEnds notes when this process hears of the end of each server, and when the server says that it was told and that
// it has closed its socket, until ctx ends.
func watchEnds(ctx context.Context, t *testing.T, ns string) *ends {
	t.Helper()
	e := new(ends)
	w, err := client.CoreV1().Pods(ns).Watch(ctx, metav1.ListOptions{LabelSelector: "app=netexec"})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer w.Stop()
		ending, followed := map[string]bool{}, map[string]bool{}
		for ev := range w.ResultChan() {
			p, ok := ev.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			if p.DeletionTimestamp != nil && !ending[p.Name] {
				ending[p.Name] = true
				e.add(moment{time.Now(), p.Name, "deletion"})
			}
			if ready(p) && !followed[p.Name] {
				followed[p.Name] = true
				go e.follow(ctx, p)
			}
		}
	}()
	return e
}

func (e *ends) follow(ctx context.Context, p *corev1.Pod) {
	r, err := client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Follow: true, Timestamps: true}).Stream(ctx)
	if err != nil {
		return
	}
	defer r.Close()
	for lines := bufio.NewScanner(r); lines.Scan(); {
		at, what, _ := strings.Cut(lines.Text(), " ")
		if when, err := time.Parse(time.RFC3339Nano, at); err == nil {
			e.add(moment{when, p.Name, what})
		}
	}
}
