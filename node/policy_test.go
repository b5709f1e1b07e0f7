package node_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/test/await"
)

// only permits a pod ingress from others, and from ranges.
func only(to *nodetest.Pod, from []*nodetest.Pod, ranges ...string) *policy.Policy {
	named := func(p *nodetest.Pod) law.Selector {
		return law.Selector{{Key: "name", Op: law.In, Values: []string{p.Name}}}
	}
	r := law.Rule{AnyPort: true}
	for _, p := range from {
		r.Parties = append(r.Parties, law.Party{Pods: named(p)})
	}
	for _, text := range ranges {
		r.Parties = append(r.Parties, law.Party{Range: netip.MustParsePrefix(text)})
	}
	return &policy.Policy{Namespace: "default", Name: "only", Pods: named(to), Ingress: policy.Rules{Isolates: true, List: []law.Rule{r}}}
}

// refused asserts that a pod cannot connect.
func refused(t *testing.T, p *nodetest.Pod, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	if c, err := p.Dial(ctx, "tcp", to); err == nil {
		_ = c.Close()
		t.Errorf("%s reaches %s", p.Name, to)
	} else if ctx.Err() != nil {
		t.Errorf("%s is not told that it may not reach %s: %v", p.Name, to, err)
	}
}

// TestPolicy: pods are judged by their labels, also through a Service; a client of a NodePort by its own address, on
// the pod's node; a pod that its node has not heard of waits.
func TestPolicy(t *testing.T) {
	c := nodetest.New(t, 2)
	n1, n2 := c.Members[0], c.Members[1]
	a, b, far := n1.Pod(3), n1.Pod(4), n2.Pod(3)
	serve(t, far, 8080)
	at, service := netip.AddrPortFrom(far.Addrs[0], 8080), netip.AddrPortFrom(netip.MustParseAddr("10.96.0.80"), 80)
	c.Policies = []*policy.Policy{only(far, []*nodetest.Pod{a})}
	c.Serve(web(30080, far))
	once(t, a, "tcp", at)
	once(t, a, "tcp", service)
	refused(t, b, at)
	refused(t, b, service)
	socket, ok := n1.HostSocket("tcp", 30080)
	if !ok {
		t.Fatal("nobody listens for the NodePort")
	}
	if conn, err := net.DialTimeout("tcp", socket.String(), await.Patience); err == nil { // the reset may come before
		defer conn.Close()
		if got, err := (client{conn, "tcp"}).ask("hello"); err == nil {
			t.Errorf("a client that the policy does not name got %q", got)
		}
	}
	c.Policies = []*policy.Policy{only(far, nil, n1.Addr.String()+"/32")} // as which a client on localhost is seen
	c.Serve(web(30080, far))
	refused(t, a, at)
	answersOutside(t, n1, "tcp", socket, far.Name)

	c.Policies = []*policy.Policy{only(far, []*nodetest.Pod{a})}
	before := *n2.Config().Policy.Own[0]
	before.UID = "of another pod"
	for what, own := range map[string][]*policy.Pod{"a pod that its node does not know": nil, "a pod of whose name its node knows another one": {&before}} {
		config := n2.Config()
		config.Policy.Own = own
		if err := n2.Set(config); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if conn, err := a.Dial(ctx, "tcp", at); err == nil || ctx.Err() == nil {
			t.Errorf("%s was dialled: %v, %v; want no answer", what, conn, err)
		}
	}
	c.Serve(web(30080, far))
	once(t, a, "tcp", at)
}

// TestStagedPolicy: a staged policy cuts nothing and denies nothing, not even to a pod that its node does not know, and
// what it would do is found: to connections that begin, and to one that stands.
func TestStagedPolicy(t *testing.T) {
	c := nodetest.New(t, 2)
	n2 := c.Members[1]
	a, far := c.Members[0].Pod(3), n2.Pod(3)
	serve(t, far, 8080)
	c.Serve()
	at := netip.AddrPortFrom(far.Addrs[0], 8080)
	conn := dial(t, a, "tcp", at)
	conn.answers(t, far.Name, a.Addrs[0])
	staged := only(far, nil)
	staged.Staged = true
	c.Policies = []*policy.Policy{staged}
	c.Serve()
	if _, err := conn.ask("more"); err != nil {
		t.Errorf("the connection was cut: %v", err)
	}
	once(t, a, "tcp", at)
	tables, findings := n2.Policies()
	list := findings.List(tables)
	if len(list) != 1 || list[0].Begun != 1 || list[0].Standing == 0 || list[0].Would != policy.Deny || list[0].By.String() != "NetworkPolicy default/only" || list[0].Toward.Name != "default/"+far.Name {
		t.Errorf("found %+v", list)
	}
	if n := n2.Counters().Of("tapestry_policy_staged_total"); n["deny"] != 1 || n["cut"] == 0 || n["permit"] != 0 {
		t.Errorf("counted %v", n)
	}
	config := n2.Config()
	config.Policy.Own = nil
	if err := n2.Set(config); err != nil {
		t.Fatal(err)
	}
	once(t, a, "tcp", at)
}

// TestPolicyCutsBothWays: a policy that comes cuts a connection; what its server still sends does not begin it anew.
func TestPolicyCutsBothWays(t *testing.T) {
	c := nodetest.New(t, 2)
	a, far := c.Members[0].Pod(3), c.Members[1].Pod(3)
	serve(t, far, 8080)
	c.Serve()
	conn := dial(t, a, "tcp", netip.AddrPortFrom(far.Addrs[0], 8080))
	conn.answers(t, far.Name, a.Addrs[0])
	c.Policies = []*policy.Policy{only(far, nil)}
	c.Serve()
	if got, err := conn.ask("more"); err == nil {
		t.Errorf("the connection goes on: %q", got)
	}
}

// TestPolicyOfSteered: a connection that is steered to a third node is judged before, by its client.
func TestPolicyOfSteered(t *testing.T) {
	c := nodetest.New(t, 3)
	n2 := c.Members[1]
	a, b := c.Members[0].Pod(3), c.Members[0].Pod(4)
	leaves, far := n2.Pod(4), c.Members[2].Pod(6)
	for _, p := range []*nodetest.Pod{leaves, far} {
		serve(t, p, 8080)
	}
	c.Policies = []*policy.Policy{only(far, []*nodetest.Pod{a})}
	c.Serve(web(0, leaves))
	config := n2.Config()
	s := web(0, leaves, far)
	s.Endpoints = ends(leaves)(s.Endpoints)
	config.Services.Services = roll.From(append(config.Services.Services.Slice()[:0], s))
	if err := n2.Set(config); err != nil {
		t.Fatal(err)
	}
	service := netip.AddrPortFrom(netip.MustParseAddr("10.96.0.80"), 80)
	dial(t, a, "tcp", service).answers(t, far.Name, netip.MustParseAddr("10.244.2.1"))
	once(t, b, "tcp", service) // by the pod that leaves, since it may not reach the other one

	// A pod that may not begin connections to the other one is not steered there either.
	config = n2.Config()
	config.Services.Services = roll.From(append(config.Services.Services.Slice()[:0], s))
	config.Policy.Policies = []*policy.Policy{{
		Namespace: "default", Name: "egress", Pods: law.Selector{{Key: "name", Op: law.In, Values: []string{b.Name}}},
		Egress: policy.Rules{Isolates: true, List: []law.Rule{{AnyPort: true, Parties: []law.Party{{Pods: law.Selector{{Key: "name", Op: law.In, Values: []string{leaves.Name}}}}}}}},
	}}
	if err := n2.Set(config); err != nil {
		t.Fatal(err)
	}
	dial(t, a, "tcp", service).answers(t, far.Name, netip.MustParseAddr("10.244.2.1"))
	dial(t, b, "tcp", service).answers(t, leaves.Name, b.Addrs[0])
}

// TestPolicyOfIngress: Ingress asks for each request whether the client may reach an endpoint, on this node and others.
func TestPolicyOfIngress(t *testing.T) {
	c := nodetest.New(t, 2)
	m := c.Members[0]
	near, far := m.Pod(3), c.Members[1].Pod(3)
	for _, p := range []*nodetest.Pod{near, far} {
		l, err := p.Listen(netip.AddrPortFrom(p.Addrs[0], 8080))
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, p.Name) })}
		t.Cleanup(func() { _ = s.Close() })
		go func() { _ = s.Serve(l) }()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = m.ServeHTTP(t.Context(), l) }()
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	browser := http.Client{Transport: transport, Timeout: await.Patience}
	get := func() (code int, body string) {
		t.Helper()
		resp, err := browser.Get("http://" + l.Addr().String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		all, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(all)
	}
	routes := ingress.Config{Routes: []ingress.Route{{Source: "default/web", Backend: ingress.ServicePort{Namespace: "default", Name: "web", Port: "80"}}}}
	for _, step := range []struct {
		policies []*policy.Policy
		to       []*nodetest.Pod
		want     []string
	}{
		{nil, []*nodetest.Pod{far}, []string{far.Name}},
		{[]*policy.Policy{only(far, nil)}, []*nodetest.Pod{far}, nil},
		{[]*policy.Policy{only(far, nil)}, []*nodetest.Pod{near, far}, []string{near.Name}},
		{[]*policy.Policy{only(near, nil)}, []*nodetest.Pod{near}, []string{near.Name}}, // the node itself may
		{[]*policy.Policy{only(far, nil, "127.0.0.0/8")}, []*nodetest.Pod{far}, nil},
		{[]*policy.Policy{only(far, nil, m.Addr.String()+"/32")}, []*nodetest.Pod{far}, []string{far.Name}}, // so the node is seen
	} {
		c.Policies = step.policies
		c.Serve(web(0, step.to...))
		config := m.Config()
		config.Ingress = routes
		if err := m.Set(config); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if code, body := get(); step.want == nil && code != http.StatusForbidden || step.want != nil && !slices.Contains(step.want, body) {
				t.Errorf("got %d %q, want %q", code, body, step.want)
			}
		}
	}
	config := m.Config()
	config.Ingress, config.Policy.Others = routes, roll.List[*policy.Pod]{} // m has not heard of far
	if err := m.Set(config); err != nil {
		t.Fatal(err)
	}
	if code, body := get(); code != http.StatusServiceUnavailable {
		t.Errorf("an endpoint of which nothing is known: got %d %q", code, body)
	}
}
