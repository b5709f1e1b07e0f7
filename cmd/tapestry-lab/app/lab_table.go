package app

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"tapestry.dev/tapestry/test/lab"
)

// printStatus shows a lab as aligned tables.
func printStatus(w io.Writer, st *lab.Status) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "NODE\tAGENT\tRESTARTS\tADDRESSES\tPOD RANGES")
	for _, n := range st.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", n.Name, n.Agent, n.Restarts, joinAddrs(n.Addrs), joinPrefixes(n.PodCIDRs))
	}
	fmt.Fprintf(t, "outside\t-\t-\t%s\t\n", joinAddrs(st.Outside))
	if err := t.Flush(); err != nil {
		return err
	}
	if len(st.Pods) > 0 {
		fmt.Fprintln(t, "\nPOD\tREADY\tSTATUS\tRESTARTS\tAGE\tNODE\tADDRESSES")
		for _, p := range st.Pods {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", shortKey(p.Namespace, p.Name), yes(p.Ready), podState(p), p.Restarts, age(p.Started), p.Node, joinAddrs(p.Addrs))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(t, "\nSERVICE\tTYPE\tENDPOINTS\tPORTS\tADDRESSES")
	for _, s := range st.Services {
		fmt.Fprintf(t, "%s\t%s\t%d/%d\t%s\t%s\n", shortKey(s.Namespace, s.Name), s.Type, s.Ready, s.Endpoints, strings.Join(s.Ports, ","), strings.Join(s.ClusterIPs, ","))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(st.Ingresses) > 0 {
		fmt.Fprintln(t, "\nINGRESS\tHOSTS\tADDRESSES")
		for _, i := range st.Ingresses {
			fmt.Fprintf(t, "%s\t%s\t%s\n", shortKey(i.Namespace, i.Name), strings.Join(i.Hosts, ","), strings.Join(i.Addrs, ","))
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
		fmt.Fprintln(w, "  "+line)
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
