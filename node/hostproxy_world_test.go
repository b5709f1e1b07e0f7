package node_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/test/await"
)

// TestHostProxy: without a host TAP a process of the node reaches Services, pods and node ports of all nodes by the
// host proxy, which see the node as their client. It leads nowhere else.
func TestHostProxy(t *testing.T) {
	c := nodetest.New(t, 2)
	m := c.Members[0]
	near, far := m.Pod(3), c.Members[1].Pod(3)
	serve(t, near, 8080)
	serve(t, far, 8080)
	c.Serve(web(30080, far))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.ServeProxy(ctx, l) }()
	defer func() { cancel(); <-ended }()
	ask := func(to string) (net.Conn, int) {
		t.Helper()
		conn, err := net.DialTimeout("tcp", l.Addr().String(), await.Patience)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", to); err != nil {
			t.Fatal(err)
		}
		// The pods speak first after they are spoken to, so nothing of theirs is in the buffer.
		answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		return conn, answer.StatusCode
	}
	for to, name := range map[string]string{
		"10.96.0.80:80": far.Name, near.Addrs[0].String() + ":8080": near.Name, far.Addrs[0].String() + ":8080": far.Name,
		c.Members[1].Addr.String() + ":30080": far.Name,
	} {
		conn, status := ask(to)
		if status != http.StatusOK {
			t.Errorf("%s: status %d", to, status)
		} else {
			client{conn, "tcp"}.answers(t, name, m.Addr)
		}
		_ = conn.Close()
	}
	for to, want := range map[string]int{
		"10.96.0.80:81": http.StatusBadGateway, "203.0.113.7:80": http.StatusForbidden, "127.0.0.1:22": http.StatusForbidden,
		m.Addr.String() + ":22": http.StatusForbidden, c.Members[1].Addr.String() + ":22": http.StatusForbidden, "example.com:80": http.StatusBadGateway,
	} {
		conn, status := ask(to)
		if _ = conn.Close(); status != want {
			t.Errorf("%s: status %d, want %d", to, status, want)
		}
	}
	await.Until(t, "all connections are given back", func() bool {
		return m.Counters().Of("tapestry_host_proxy_connections")[""] == 0 && m.Counters().Of("tapestry_host_proxy_total")["served"] == 4
	})
	if strings.Contains(fmt.Sprint(m.Problems()), "proxy") {
		t.Errorf("problems: %v", m.Problems())
	}
}
