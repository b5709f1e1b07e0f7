package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// The Service of TestStartsWithoutAPIServer, in the API server's JSON.
const (
	webService = `{"metadata": {"namespace": "default", "name": "web"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
		"ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}}`
	webSlice = `{"metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
		"ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": [{"addresses": ["10.244.1.77"], "conditions": {"ready": true}, "nodeName": "n1"}]}`
)

// TestStartsWithoutAPIServer: an agent that is killed while no API server answers serves again at once: cluster DNS,
// cluster addresses and NodePorts. It is ready, says how old its objects are, takes pods, and goes over to the API
// server's objects when there is one.
func TestStartsWithoutAPIServer(t *testing.T) {
	s := clustertest.New(t)
	n := newMachine(t)
	health := fmt.Sprintf("127.0.0.1:%d", freeport.Of(t))
	n.source = []string{"--kubeconfig", s.Kubeconfig(), "--health-address", health}
	for resource, text := range map[string]string{"nodes": allocatedNode, "pods": fixedPod, "services": webService, "endpointslices": webSlice} {
		s.PutJSON(resource, text)
	}
	n.start()
	n.ready()
	web, client := n.sandbox("c1", "fixed"), n.sandbox("c2", "client")
	web.works("ADD")
	web.serves(8080)
	client.works("ADD")
	served := func(when string) {
		t.Helper()
		for _, addr := range []string{"10.96.0.7:80", "web.default.svc.cluster.local:80"} {
			if got, err := client.asks(addr); got != "c1" || err != nil {
				t.Errorf("%s, a pod asks %s: %q, %v", when, addr, got, err)
			}
		}
		if got, err := ask("172.31.0.1:30080"); got != "c1" || err != nil {
			t.Errorf("%s, the NodePort answers %q, %v", when, got, err)
		}
	}
	n.until("the NodePort is open", func() bool { got, err := ask("172.31.0.1:30080"); return got == "c1" && err == nil })
	served("before")
	file := filepath.Join(n.dir, "state", "objects")
	n.until("the objects are saved", func() bool { _, err := os.Stat(file); return err == nil })

	s.Stop()
	n.kill()
	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, hour, hour); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.ready()
	n.until("the NodePort is open again", func() bool { got, err := ask("172.31.0.1:30080"); return got == "c1" && err == nil })
	served("without an API server")
	// One of its checks may take too long on a busy machine, and says that it is not ready then.
	n.until("whoever asks is told that it is ready, and from where", func() bool {
		told, err := n.api.Node(t.Context())
		return err == nil && len(told.Missing) == 0 && strings.Contains(told.Source, "as saved on this node")
	})
	const old = "the cluster's objects in use are 1h0m"
	if got := n.problems(); !strings.Contains(got, "Node n1: "+old) {
		t.Errorf("the problems are %s", got)
	}
	n.until("it is ready, with a note", func() bool {
		text, status := get(t, "http://"+health+"/readyz")
		return status == http.StatusOK && strings.Contains(text, "[+]cluster ok: "+old)
	})
	again := n.sandbox("c3", "fixed")
	web.works("DEL")
	again.works("ADD")
	if got := again.addrs(); got != "10.244.1.77/32" {
		t.Errorf("the pod that asks for an address has %s", got)
	}

	s.PutJSON("services", strings.Replace(webService, "10.96.0.7", "10.96.0.9", 2))
	again.serves(8080)
	s.Start()
	n.until("the API server's objects are in force", func() bool { got, err := client.asks("10.96.0.9:80"); return got == "c3" && err == nil })
	n.until("that it was away is not told any more", func() bool { return !strings.Contains(n.problems(), "objects in use are") })
	if got, err := client.asks("10.96.0.7:80"); err == nil {
		t.Errorf("at the address of before, %q answers", got)
	}
}

// asks returns what is answered at a name or address and port of TCP, as a process in the sandbox reaches it.
func (s *sandbox) asks(addr string) (got string, err error) {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var c net.Conn
		err := s.ns.Do(func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, "udp", "10.96.0.10:53")
			return err
		})
		return c, err
	}}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), await.Patience)
	defer cancel()
	addrs, err := resolver.LookupNetIP(ctx, "ip4", host)
	if err != nil {
		return "", err
	}
	err = s.ns.Do(func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(addrs[0].String(), port), await.Patience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(await.Patience))
		answer, err := io.ReadAll(c)
		got = string(answer)
		return err
	})
	return got, err
}

// get returns the body and the status of an answer, or 0.
func get(t *testing.T, url string) (string, int) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return fmt.Sprint(err), 0
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Sprint(err), 0
	}
	return string(body), resp.StatusCode
}
