package node_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/test/await"
)

// upstream is a DNS server outside that answers when it is released.
type upstream struct {
	at      netip.AddrPort
	release func()

	mu    sync.Mutex
	asked []string // names, in lower case
}

func newUpstream(t *testing.T) *upstream {
	t.Helper()
	u, released := new(upstream), make(chan struct{})
	u.release = sync.OnceFunc(func() { close(released) })
	answer := mdns.HandlerFunc(func(w mdns.ResponseWriter, r *mdns.Msg) {
		u.mu.Lock()
		u.asked = append(u.asked, strings.ToLower(r.Question[0].Name))
		u.mu.Unlock()
		go func() { // the questions of a connection are handled one after the other
			<-released
			_ = w.WriteMsg(new(mdns.Msg).SetReply(r)) // who has not waited for it has failed already
		}()
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.at = l.Addr().(*net.TCPAddr).AddrPort()
	pc, err := net.ListenPacket("udp", u.at.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*mdns.Server{{Listener: l, Handler: answer}, {PacketConn: pc, Handler: answer}} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = l.Close(); _ = pc.Close() })
	}
	t.Cleanup(u.release)
	return u
}

// wasAsked reports whether u was asked for all names. It is asked for others, too: the Node probes it.
func (u *upstream) wasAsked(names ...string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(u.asked, name) })
}

// resolving is a client of cluster DNS over TCP.
type resolving struct {
	*mdns.Conn
	t *testing.T
}

func resolve(ctx context.Context, t *testing.T, pod *nodetest.Pod, network string) (resolving, error) {
	conn, err := pod.Dial(ctx, network, netip.AddrPortFrom(nodetest.DNS[0], 53))
	if err != nil {
		return resolving{}, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(await.Patience))
	return resolving{&mdns.Conn{Conn: conn}, t}, nil
}

// question returns the bytes of a question over TCP.
func question(t *testing.T, id uint16, name string) []byte {
	q := new(mdns.Msg).SetQuestion(name, mdns.TypeA)
	q.Id = id
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...)
}

func (r resolving) send(b []byte) {
	r.t.Helper()
	if _, err := r.Conn.Conn.Write(b); err != nil {
		r.t.Error(err)
	}
}

// answered wants answers to these questions, in any order. They may say that the server outside took too long.
func (r resolving) answered(ids ...uint16) {
	r.t.Helper()
	for range ids {
		m, err := r.ReadMsg()
		if err != nil {
			r.t.Errorf("one of the questions %d got %v", ids, err)
			return
		}
		if !slices.Contains(ids, m.Id) {
			r.t.Errorf("an answer to %d came, want those to %d", m.Id, ids)
		}
	}
}

// ends wants the connection to end in order, and closes it.
func (r resolving) ends(who string) {
	r.t.Helper()
	if m, err := r.ReadMsg(); !errors.Is(err, io.EOF) {
		r.t.Errorf("the connection of %s ended with %v %v", who, m, err)
	}
	_ = r.Close()
}

// TestDrainDNS: before a planned restart questions over TCP are answered of which something has come, and those of who
// has only just connected. Connections end in order, and all else goes on meanwhile. Who connects then is not refused:
// the next Node serves him.
func TestDrainDNS(t *testing.T) {
	node.DrainLastFor(t, await.Patience)
	c := nodetest.New(t, 1)
	m := c.Members[0]
	pod, up := m.Pod(3), newUpstream(t)
	m.RestartWith(func(h *node.Held) {
		h.Upstreams = func() ([]netip.AddrPort, error) { return []netip.AddrPort{up.at}, nil }
	})
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	connect := func(from *nodetest.Pod, network string) resolving {
		t.Helper()
		r, err := resolve(ctx, t, from, network)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	const own = "none.cluster.local."
	silent, asking, half, fresh := connect(pod, "tcp"), connect(pod, "tcp"), connect(pod, "tcp"), connect(pod, "tcp")
	silent.send(question(t, 1, own))
	silent.answered(1)
	outside := []string{"n0.example.", "n1.example.", "n2.example."}
	for id, name := range outside {
		asking.send(question(t, uint16(id), name))
	}
	await.Until(t, "the server outside is asked", func() bool { return up.wasAsked(outside...) })
	first, second := question(t, 1, own), question(t, 2, own)
	half.send(append(first, second[:9]...)) // one segment, so the second question has begun when the first is answered
	half.answered(1)
	await.Until(t, "all are accepted", func() bool { return m.Counters().Get("tapestry_dns_connections") == 4 })

	drained := make(chan struct{})
	go func() { defer close(drained); m.Drain() }()
	silent.ends("who was answered") // so the end has begun
	late := make(chan resolving, 1)
	go func() {
		r, err := resolve(ctx, t, pod, "tcp")
		if err != nil {
			t.Errorf("who connects meanwhile: %v", err)
		}
		late <- r
	}()
	another := m.Pod(4)
	serve(t, another, 8080)
	c.Serve(web(0, another))
	udp := connect(another, "udp")
	ask := new(mdns.Msg).SetQuestion("web.default.svc.cluster.local.", mdns.TypeA)
	if got, _, err := new(mdns.Client).ExchangeWithConnContext(ctx, ask, udp.Conn); err != nil || len(got.Answer) != 1 {
		t.Errorf("a new pod asks for a new Service meanwhile: %v, %v", got, err)
	}
	fresh.send(question(t, 1, own))
	fresh.answered(1)
	fresh.ends("who had just connected")
	half.send(second[9:])
	half.answered(2)
	half.ends("who had asked half")
	select {
	case <-drained:
		t.Error("the end has not waited for the questions under way")
	default:
	}
	up.release()
	asking.answered(0, 1, 2)
	asking.ends("who was waiting")
	<-drained
	m.Restart()
	if next := <-late; next.Conn != nil {
		next.send(question(t, 9, own))
		next.answered(9)
	}
}
