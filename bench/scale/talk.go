package scale

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/tap"
)

const (
	askEach = 200 * time.Microsecond
	// questionSize is the size of a question and of an answer, in bytes.
	questionSize = 64
)

// talk is a client pod that asks the target Service again and again, and the pods that answer. Each server echoes what
// it gets and adds its own address, so that the client knows who answered. The client takes all times with its own
// clock.
type talk struct {
	client  *pod
	servers []*pod
	answers chan answer

	mu      sync.Mutex
	conn    *net.UDPConn
	sockets []*net.UDPConn // of the servers
	stop    chan struct{}
	asked   atomic.Uint64
	done    sync.WaitGroup
}

// answer is one datagram that came back.
type answer struct {
	from netip.Addr
	at   time.Time
}

// talkingNode makes a node with an agent, a cluster without other Services, a client and two servers that answer. The
// target leads to the first server.
func talkingNode(ctx context.Context, o Options) (*node, *talk, error) {
	n, err := newNode(o)
	if err != nil {
		return nil, nil, err
	}
	n.talk = &talk{answers: make(chan answer, 1024), stop: make(chan struct{})}
	if err := n.beginTalk(ctx, n.talk); err != nil {
		return nil, nil, errors.Join(err, n.close())
	}
	return n, n.talk, nil
}

func (n *node) beginTalk(ctx context.Context, t *talk) (err error) {
	if err := os.WriteFile(filepath.Join(n.manifests, "nodes.yaml"), []byte(nodesYAML), 0o644); err != nil {
		return err
	}
	if err := n.start(); err != nil {
		return err
	}
	if err := n.ready(ctx); err != nil {
		return err
	}
	if t.client, err = n.addPod(ctx, 10); err != nil {
		return err
	}
	for number := byte(11); number < 13; number++ {
		p, err := n.addPod(ctx, number)
		if err != nil {
			return err
		}
		if err := t.serve(p); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(n.manifests, targetFile), target(t.servers[0].addr), 0o644); err != nil {
		return err
	}
	begin := time.Now()
	t.done.Go(t.ask)
	if err := t.redial(); err != nil {
		return err
	}
	_, err = t.await(ctx, t.servers[0].addr, begin)
	return err
}

// serve makes p answer.
func (t *talk) serve(p *pod) error {
	conn, err := listen(p.ns, serverPort)
	if err != nil {
		return err
	}
	t.servers = append(t.servers, p)
	t.sockets = append(t.sockets, conn)
	own := p.addr.AsSlice()
	t.done.Go(func() {
		buf := make([]byte, questionSize)
		for {
			k, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // closed
			}
			_, _ = conn.WriteToUDPAddrPort(append(buf[:k:k], own...), from) // a failure loses one answer
		}
	})
	return nil
}

func listen(ns *tap.Namespace, port int) (conn *net.UDPConn, err error) {
	err = ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	})
	return conn, err
}

// redial makes the client ask from another port, which begins a new flow.
func (t *talk) redial() error {
	conn, err := listen(t.client.ns, 0)
	if err != nil {
		return fmt.Errorf("ask from another port: %w", err)
	}
	t.mu.Lock()
	old := t.conn
	t.conn = conn
	t.mu.Unlock()
	if old != nil {
		old.Close()
	}
	t.done.Go(func() {
		buf := make([]byte, questionSize+4)
		for {
			k, _, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // closed
			}
			at := time.Now()
			from, _ := netip.AddrFromSlice(buf[max(0, k-4):k])
			select {
			case t.answers <- answer{from, at}:
			case <-t.stop:
				return
			}
		}
	})
	return nil
}

// ask sends the questions.
func (t *talk) ask() {
	tick := time.NewTicker(askEach)
	defer tick.Stop()
	to := netip.AddrPortFrom(targetAddr, targetPort)
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
		}
		t.mu.Lock()
		conn := t.conn
		t.mu.Unlock()
		if conn != nil {
			t.asked.Add(1)
			_, _ = conn.WriteToUDPAddrPort([]byte("?"), to) // fails while the agent does not know the Service
		}
	}
}

// await returns the time of the first answer by server that came after begin.
func (t *talk) await(ctx context.Context, server netip.Addr, begin time.Time) (time.Time, error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case a := <-t.answers:
			if a.from == server && a.at.After(begin) {
				return a.at, nil
			}
		case <-late.C:
			return time.Time{}, fmt.Errorf("no answer from %s within %s to %d questions", server, patience, t.asked.Load())
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
}

func (t *talk) close() {
	close(t.stop)
	t.mu.Lock()
	if t.conn != nil {
		t.conn.Close()
	}
	t.mu.Unlock()
	for _, c := range t.sockets {
		c.Close()
	}
	t.done.Wait()
}
