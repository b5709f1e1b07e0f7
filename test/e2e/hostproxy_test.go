package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"testing"

	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/serve"
)

// hostProxyAt is where agents of the test serve their host proxy.
const hostProxyAt = "127.0.0.1:1080"

// byProxy asks the server at each address over HTTP, by the node's host proxy: socks5 or connect, ADDRESS. It prints
// the answers, and for an address without one why there is none.
func byProxy(ctx context.Context, args []string) error {
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "socks5h", Host: hostProxyAt}), DisableKeepAlives: true}
	if args[0] == "connect" {
		transport = &http.Transport{DialContext: connectBy, DisableKeepAlives: true}
	}
	answers := map[string]serve.Answer{}
	for _, addr := range args[1:] {
		answers[addr] = func() (a serve.Answer) {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr, nil)
			if err != nil {
				return serve.Answer{Host: err.Error()}
			}
			resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(r)
			if err == nil {
				defer resp.Body.Close()
				err = json.NewDecoder(resp.Body).Decode(&a)
			}
			if err != nil {
				a.Host = err.Error()
			}
			return a
		}()
	}
	return print(answers)
}

// connectBy dials an address by CONNECT (RFC 9110 9.3.6).
func connectBy(ctx context.Context, _, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", hostProxyAt)
	if err != nil {
		return nil, err
	}
	if _, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", addr); err == nil {
		// The server speaks when it is spoken to, so nothing of its is in the buffer.
		var resp *http.Response
		if resp, err = http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect}); err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// TestHostProxy: nodes have no host TAP. Their processes reach pods of all nodes and Services, by name and address, by
// the host proxy alone, also after the agent was killed. It leads nowhere else.
func TestHostProxy(t *testing.T) {
	yaml := nodesYAML + unprobedYAML("near", "node-1") + unprobedYAML("far", "node-2") +
		"---\n{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: far}, ports: [{port: 80, targetPort: 8080}]}}\n"
	c := upWith(t, testTime, lab.Options{Name: "host-proxy", NoHostTAP: true, AgentFlags: []string{"--host-proxy", hostProxyAt}}, yaml)
	near, far, outside := c.addr(t, "near", false), c.addr(t, "far", false), c.addr(t, "node-2", false)
	ask := func(how string) {
		t.Helper()
		want := map[string]string{
			"web.default.svc.cluster.local": "far", "web.default": "far", at(near, 8080): "near", at(far, 8080): "far",
			at(outside, 22): "", "203.0.113.7:80": "", "example.com": "",
		}
		argv := []string{"by-proxy", how}
		for addr := range want {
			argv = append(argv, addr)
		}
		for addr, a := range decode[map[string]serve.Answer](t, c.run(t, lab.Node("node-1"), argv...)) {
			if a.Pod != want[addr] || a.Pod == "" && a.Host == "" {
				t.Errorf("%s, %s: answered by %q, %q, want %q", how, addr, a.Pod, a.Host, want[addr])
			}
		}
	}
	for _, how := range []string{"socks5", "connect"} {
		ask(how)
	}
	if got := c.ask(t, lab.Node("node-1"), "tcp", at(far, 9000), "--timeout", "1s"); got.Error == "" {
		t.Errorf("without the proxy the node reached a pod: %+v", got)
	}
	c.killed(t, "node-1")
	ask("socks5")
}
