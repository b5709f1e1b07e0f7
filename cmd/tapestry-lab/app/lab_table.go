package app

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/test/lab"
)

// printStatus prints a lab as aligned tables.
func printStatus(w io.Writer, st *lab.Status) error {
	t := output.Columns(w)
	t.Row("NODE", "AGENT", "RESTARTS", "ADDRESSES", "POD RANGES")
	for _, n := range st.Nodes {
		t.Row(n.Name, n.Agent, strconv.Itoa(n.Restarts), joinAddrs(n.Addrs), joinPrefixes(n.PodCIDRs))
	}
	t.Row("outside", "-", "-", joinAddrs(st.Outside), "")
	if err := t.Flush(); err != nil {
		return err
	}
	if len(st.Pods) > 0 {
		fmt.Fprintln(w)
		t.Row("POD", "READY", "STATUS", "RESTARTS", "AGE", "NODE", "ADDRESSES")
		for _, p := range st.Pods {
			t.Row(shortKey(p.Namespace, p.Name), yes(p.Ready), podState(p), strconv.Itoa(p.Restarts), age(p.Started), p.Node, joinAddrs(p.Addrs))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	t.Row("SERVICE", "TYPE", "ENDPOINTS", "PORTS", "ADDRESSES", "OUTSIDE")
	for _, s := range st.Services {
		t.Row(shortKey(s.Namespace, s.Name), s.Type, fmt.Sprintf("%d/%d", s.Ready, s.Endpoints), strings.Join(s.Ports, ","), strings.Join(s.ClusterIPs, ","), strings.Join(s.Outside, ","))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(st.Ingresses) > 0 {
		fmt.Fprintln(w)
		t.Row("INGRESS", "HOSTS", "ADDRESSES")
		for _, i := range st.Ingresses {
			t.Row(shortKey(i.Namespace, i.Name), strings.Join(i.Hosts, ","), strings.Join(i.Addrs, ","))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	printList(w, "IMPAIRED", st.Impairments)
	printList(w, "PROBLEMS", st.Problems)
	if st.ApplyError != "" {
		printList(w, "NOT APPLIED, the last good version stays", strings.Split(st.ApplyError, "\n"))
	}
	return nil
}

func printList(w io.Writer, title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintln(w, "\n"+title)
	for _, line := range lines {
		output.Line(w, "  "+line)
	}
}

func shortKey(namespace, name string) string {
	if namespace == "default" {
		return name
	}
	return namespace + "/" + name
}

func podState(p lab.PodStatus) string {
	if p.Terminating {
		return "Terminating"
	}
	return p.Phase
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func age(since time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return time.Since(since).Truncate(time.Second).String()
}

func joinAddrs(list []netip.Addr) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

func joinPrefixes(list []netip.Prefix) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}
