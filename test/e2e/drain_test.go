package e2e

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/test/lab"
)

const (
	// heldHead is what a client of serve-half gets at once, and heldRest what it gets when the server's input ends.
	heldHead = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\nbegun\n"
	heldRest = "over\n"
)

// serveHalf answers each connection half as soon as something comes, and the rest when the input ends: ADDR. It
// speaks HTTP well enough, and reads over a header of the PROXY protocol.
func serveHalf(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	ln, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	started()
	var all sync.WaitGroup
	for n := 0; ; n++ {
		c, err := ln.Accept()
		if err != nil {
			all.Wait()
			return print(n) // the input has ended
		}
		all.Go(func() {
			defer c.Close()
			if _, err := c.Read(make([]byte, 1)); err != nil {
				return // somebody looked whether there is a server
			}
			_, _ = io.WriteString(c, heldHead) // what the client gets is judged there
			<-ctx.Done()
			_, _ = io.WriteString(c, heldRest)
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		})
	}
}

// askHalf connects and sends FIRST, again and again until something comes that contains WANT. When the input ends it
// sends REST and no more: ADDR FIRST WANT REST, in hex but for ADDR. It ends when the other end does, and prints what
// came after WANT, in hex, or why the connection broke.
func askHalf(ctx context.Context, args []string) error {
	var raw [3][]byte // FIRST, WANT, REST
	for i := range raw {
		b, err := hex.DecodeString(args[1+i])
		if err != nil {
			return err
		}
		raw[i] = b
	}
	var c net.Conn
	untilWell(ctx, func() bool {
		conn, err := net.DialTimeout("tcp", args[0], patience)
		if err != nil {
			return false
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = conn.Write(raw[0])
		var got []byte
		for buf := make([]byte, 512); !bytes.Contains(got, raw[1]); {
			n, err := conn.Read(buf)
			if err != nil || len(got) > 4096 {
				conn.Close()
				return false
			}
			got = append(got, buf[:n]...)
		}
		c = conn
		return true
	})
	if c == nil {
		return fmt.Errorf("%s does not answer as it should", args[0])
	}
	defer c.Close()
	started()
	if len(raw[2]) > 0 {
		context.AfterFunc(untilInputEnds(ctx), func() { _, _ = c.Write(raw[2]); _ = c.(*net.TCPConn).CloseWrite() })
	}
	rest, err := io.ReadAll(c)
	if err != nil {
		return print("broken: " + err.Error())
	}
	return print(hex.EncodeToString(rest))
}

// half is what ask-half does.
type half struct{ addr, first, want, rest string }

func (c *cluster) askHalf(t *testing.T, where lab.Target, h half) *helper {
	t.Helper()
	args := []string{"ask-half", h.addr}
	for _, text := range []string{h.first, h.want, h.rest} {
		args = append(args, hex.EncodeToString([]byte(text)))
	}
	return c.begin(t, where, args...)
}

func (c *cluster) dnsAddr(t *testing.T) string { return at(c.addr(t, "svc/kube-dns", false), 53) }

// dnsQuestion returns the bytes of a question over TCP.
func dnsQuestion(t *testing.T, id uint16) string {
	t.Helper()
	m := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	m.Id = id
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return string([]byte{byte(len(b) >> 8), byte(len(b))}) + string(b)
}

// TestDrain: an agent is asked to end while a request through Ingress, a connection of a node port with the PROXY
// protocol, and a question to cluster DNS over TCP are under way. All of them finish, although they do so only after
// the end has begun and a pod was attached meanwhile, and the next agent serves new ones. A machine on which that takes
// longer than the agent waits is given other chances.
func TestDrain(t *testing.T) {
	yaml := nodesYAML + podYAML("client", "node-1") + podYAML("web", "node-1") + `---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8090}]}}
---
apiVersion: v1
kind: Service
metadata: {name: proxied, annotations: {tapestry.dev/proxy-protocol: v1}}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8090, nodePort: 30090}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec: {rules: [{host: web.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}
`
	c := up(t, "drain", yaml)
	const tries = 5
	for i := range tries {
		yaml += podYAML(fmt.Sprint("late-", i), "node-1")
		if c.drains(t, fmt.Sprint("late-", i), yaml) {
			return
		}
	}
	t.Errorf("something was cut in each of %d updates", tries)
}

// halves are three questions of which half was asked: a request through Ingress and a connection of a node port, which
// the server answers when its input ends, and a question to cluster DNS.
type halves struct{ server, ingress, nodePort, dns *helper }

func (c *cluster) halves(t *testing.T) halves {
	t.Helper()
	node := c.addr(t, "node-1", false)
	second := dnsQuestion(t, 2)
	return halves{
		c.begin(t, lab.Pod("web"), "serve-half", ":8090"),
		c.askHalf(t, lab.Outside(), half{at(node, 80), "GET / HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n", "begun\n", ""}),
		c.askHalf(t, lab.Outside(), half{at(node, 30090), "hello\n", "begun\n", ""}),
		// Both come together, so that half of the second is there when the first is answered.
		c.askHalf(t, lab.Pod("client"), half{c.dnsAddr(t), dnsQuestion(t, 1) + second[:9], "\x00\x01", second[9:]}),
	}
}

// finish answers what is under way, the question to cluster DNS after before has returned. It reports what did not end
// as it should.
func (h halves) finish(t *testing.T, before func()) (wrong []string) {
	t.Helper()
	h.server.end(t)
	for _, who := range []*helper{h.ingress, h.nodePort} {
		if got := decode[string](t, who.end(t)); got != hex.EncodeToString([]byte(heldRest)) {
			wrong = append(wrong, fmt.Sprintf("%s got %q", who.name, got))
		}
	}
	before()
	got := decode[string](t, h.dns.end(t))
	// The number comes after the length.
	if b, err := hex.DecodeString(got); err != nil || len(b) < 4 || string(b[2:4]) != "\x00\x02" {
		wrong = append(wrong, fmt.Sprintf("DNS got %q", got))
	}
	return wrong
}

// drains updates the agent of node-1, and applies another file, with a pod more, in the meantime. It reports false when
// the agent said that the time was over.
func (c *cluster) drains(t *testing.T, pod, yaml string) bool {
	t.Helper()
	log := filepath.Join(c.Dir, "nodes", "node-1", "agent.log")
	logged, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	under := c.halves(t)
	// By these it is seen how far the end is: silent connections end when their kind drains.
	node := at(c.addr(t, "node-1", false), 80)
	request := c.askHalf(t, lab.Outside(), half{node, "GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n", "404", ""})
	question := c.askHalf(t, lab.Pod("client"), half{c.dnsAddr(t), dnsQuestion(t, 1), "\x00\x01", ""})
	before := nodeOf(c.status(t), "node-1").PID
	updated := make(chan error, 1)
	go func() { updated <- c.UpgradeAgent(c.ctx, "node-1", theProduct(t)) }()
	<-request.done
	c.write(t, yaml)
	c.until(t, "a pod is attached", func(st *lab.Status) bool { return podOf(st, pod).Ready })
	wrong := under.finish(t, func() { <-question.done })
	if err := <-updated; err != nil {
		t.Fatal(err)
	}
	c.until(t, "the next agent is ready", func(st *lab.Status) bool {
		n := nodeOf(st, "node-1")
		return n.PID != before && n.Agent == "ready"
	})
	now, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(now[len(logged):], []byte("were cut")) {
		return false
	}
	wrong = append(wrong, c.halves(t).finish(t, func() {})...)
	c.reaches(t, lab.Pod("client"), "tcp", at(c.addr(t, pod, false), 9000), pod)
	for _, text := range wrong {
		t.Error(text)
	}
	return true
}
