package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/test/awake"
	"tapestry.dev/tapestry/test/lab"
)

// asked is what came of questions or requests, and in how many seconds, without those that the machine took away.
type asked struct {
	Asked, Answered int
	Seconds         float64
}

// askMany asks a DNS server for the addresses of a name, until the input ends: ADDR NAME QUESTIONS-PER-SECOND.
func askMany(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	rate, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	context.AfterFunc(ctx, func() { c.Close() })
	q, err := new(dns.Msg).SetQuestion(args[1], dns.TypeA).SetEdns0(1232, false).Pack()
	if err != nil {
		return err
	}
	clock := awake.Start()
	defer clock.Stop()
	out := asked{}
	answers := make(chan int)
	go func() {
		n := 0
		for buf := make([]byte, dns.MaxMsgSize); ; n++ {
			if _, err := c.Read(buf); errors.Is(err, net.ErrClosed) {
				answers <- n
				return
			}
		}
	}()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for ; ctx.Err() == nil; out.Asked++ {
		if _, err := c.Write(q); err != nil && ctx.Err() == nil {
			return err
		}
		if out.Asked == 0 {
			started()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	out.Answered, out.Seconds = <-answers, clock.Now().Seconds()
	return print(out)
}

// browse makes requests over one connection until the input ends: ADDR HOST.
func browse(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	client := http.Client{Timeout: patience}
	served := func() bool {
		req, err := http.NewRequest(http.MethodGet, "http://"+args[0]+"/", nil)
		if err != nil {
			return false
		}
		req.Host = args[1]
		resp, err := client.Do(req)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK
	}
	untilWell(ctx, served)
	started()
	clock := awake.Start()
	defer clock.Stop()
	out := asked{}
	for ; ctx.Err() == nil || out.Asked == 0; out.Asked++ {
		if served() {
			out.Answered++
		}
	}
	out.Seconds = clock.Now().Seconds()
	return print(out)
}

// manyYAML returns a headless Service of n endpoints, and an Ingress that has nothing to do with it.
func manyYAML(n int) string {
	var b strings.Builder
	b.WriteString(`---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: near}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop}
spec: {rules: [{host: shop.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: shop, port: {number: 80}}}}]}}]}
`)
	for i := range n {
		if i%1000 == 0 {
			fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: many-%d, labels: {kubernetes.io/service-name: many}}\n"+
				"addressType: IPv4\nports: [{port: 80}]\nendpoints:\n", i/1000)
		}
		fmt.Fprintf(&b, "- {addresses: [100.64.%d.%d]}\n", i>>8, i&255)
	}
	return b.String()
}

// TestQuestionsAboutMany: a pod asks 30 times a second for a headless Service of 20,000 endpoints. A client outside
// gets about as many answers of the node's Ingress as without: it was a tenth, when a question cost what the Service
// holds.
func TestQuestionsAboutMany(t *testing.T) {
	c := upFor(t, 2*testTime, "many", baseYAML+manyYAML(20_000))
	server, node := at(c.addr(t, "svc/kube-dns", false), 53), at(c.addr(t, "node-1", false), 80)
	var total [2]asked
	const without, with = 0, 1
	look := func() asked {
		t.Helper()
		browsing := c.begin(t, lab.Outside(), "browse", node, "shop.example")
		select {
		case <-time.After(window):
		case <-c.ctx.Done():
			t.Fatal(c.ctx.Err())
		}
		return decode[asked](t, browsing.end(t))
	}
	questions := asked{}
	for range 2 * rounds {
		for condition := range total {
			var asking *helper
			if condition == with {
				asking = c.begin(t, lab.Pod("client"), "ask-many", server, "many.default.svc.cluster.local.", "30")
			}
			got := look()
			if got.Answered != got.Asked {
				t.Errorf("%d of %d requests were answered", got.Answered, got.Asked)
			}
			total[condition].Answered += got.Answered
			total[condition].Seconds += got.Seconds
			if asking != nil {
				q := decode[asked](t, asking.end(t))
				questions.Asked += q.Asked
				questions.Answered += q.Answered
				questions.Seconds += q.Seconds
			}
		}
	}
	rate := func(a asked) float64 { return float64(a.Answered) / a.Seconds }
	left := rate(total[with]) / rate(total[without])
	t.Logf("%d answers of the Ingress in %d windows of %s without questions, and %d with: %.2f are left; %d of %d questions were answered",
		total[without].Answered, 2*rounds, window, total[with].Answered, left, questions.Answered, questions.Asked)
	if left < 0.3 { // far below 1 because of what else the machine does
		t.Errorf("%.2f of the Ingress' answers are left", left)
	}
	if questions.Answered == 0 {
		t.Error("no question was answered: nothing was tested")
	}
}
