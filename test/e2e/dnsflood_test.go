package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/awake"
	"tapestry.dev/tapestry/test/lab"
)

// dnsFlood is how many questions TestDNSFlood asks per second that nobody answers.
const dnsFlood = 1800

// resolve asks a DNS server for the address of a name, once: ADDR NAME.
func resolve(_ context.Context, args []string) error {
	client := dns.Client{Timeout: 20 * time.Second}
	reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(args[1], dns.TypeA), args[0])
	if err != nil {
		return err
	}
	if reply.Rcode != dns.RcodeSuccess || len(reply.Answer) == 0 {
		return fmt.Errorf("%s with %d addresses", dns.RcodeToString[reply.Rcode], len(reply.Answer))
	}
	return nil
}

// askInVain asks a DNS server for names that are never answered, a new name each time, until the input ends:
// ADDR QUESTIONS-PER-SECOND. It prints how many questions it asked, and in how many seconds; those do not count in
// which the machine let nobody run.
func askInVain(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	rate, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	clock := awake.Start()
	defer clock.Stop()
	asked, begun := 0, time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		for due := int(time.Since(begun).Seconds() * float64(rate)); asked < due; asked++ {
			q, err := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d-%d.silent.example.", os.Getpid(), asked), dns.TypeA).Pack()
			if err != nil {
				return err
			}
			if _, err := c.Write(q); err != nil {
				return err
			}
			if asked == 0 {
				started()
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return print([2]float64{float64(asked), clock.Now().Seconds()})
		}
	}
}

// TestDNSFlood: a pod asks for names that nobody answers, 1,800 times a second. Lookups by another pod of that node are
// still answered, both of names outside and of the cluster's own.
func TestDNSFlood(t *testing.T) {
	c := up(t, "dns-flood", baseYAML+podYAML("greedy", "node-1"))
	api := &localapi.Client{Path: filepath.Join(c.Dir, "nodes", "node-1", "api.sock")}
	server := at(c.addr(t, "svc/kube-dns", false), 53)
	flood := c.begin(t, lab.Pod("greedy"), "ask-in-vain", server, strconv.Itoa(dnsFlood))
	if err := c.WaitFor(c.ctx, func(*lab.Status) bool {
		list, err := api.Counters(c.ctx)
		return err == nil && total(list, "coredns_forward_max_concurrent_rejects_total") > dnsFlood
	}); err != nil {
		t.Fatalf("waiting until there are too many questions: %v", err)
	}
	all := 0
	for _, name := range []string{"outside.example.", "near.default.svc.cluster.local."} {
		answered, worst := 0, time.Duration(0)
		for i := range 10 {
			begun := time.Now()
			out, stderr, code, err := c.Output(c.ctx, lab.Pod("client"), self(t), "e2e-helper", "resolve", server, name)
			if err != nil || code != 0 {
				t.Logf("lookup %d of %s: exit status %d, %v: %s%s", i, name, code, err, out, stderr)
				continue
			}
			answered++
			worst = max(worst, time.Since(begun))
		}
		all += answered
		t.Logf("%d of 10 lookups of %s were answered, the slowest with its process after %s", answered, name, worst)
	}
	if all != 20 {
		t.Errorf("%d of 20 lookups were answered", all)
	}
	asked := decode[[2]float64](t, flood.end(t))
	t.Logf("%.0f questions were asked in vain, %.0f a second", asked[0], asked[0]/asked[1])
	if asked[0]/asked[1] < dnsFlood*0.9 {
		t.Errorf("only %.0f questions were asked a second: that is no flood of %d", asked[0]/asked[1], dnsFlood)
	}
}
