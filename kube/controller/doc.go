// Package controller decides what is said once for a whole cluster: the addresses of LoadBalancer Services and the
// status of Ingresses and of Tapestry's own objects. Each decision is a pure function of the objects. 'tapestry
// controller' writes the result to an API server (kube/cluster/control), and the lab's control plane keeps it.
package controller
