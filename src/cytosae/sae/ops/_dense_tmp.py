import torch
from cytosae.sae.ops._interface import *
from cytosae.sae.ops._interface import Codes
class Dense:
    name="dense"
    def select(self,x,E,b,rule):
        pre=(x@E.T+b)
        if rule.kind=="relu": keep=pre>0
        elif rule.kind=="threshold": keep=(pre>rule.threshold)&(pre>0)
        else:
            p=pre.clamp(min=0)
            if rule.kind=="topk":
                k=min(rule.k,p.shape[1]); idx=p.sort(dim=1,descending=True,stable=True).indices[:,:k]
                keep=torch.zeros_like(p,dtype=torch.bool).scatter_(1,idx,True)&(p>0)
            else:
                k=min(rule.k*len(x),p.numel()); least=p.flatten().topk(k).values[-1]
                keep=(p>=least)&(p>0)
        n=torch.nonzero(keep); counts=keep.sum(1)
        rs=torch.cat([torch.zeros(1,dtype=torch.int64),counts.cumsum(0)])
        return Codes(rs,n[:,1].int(),pre[keep],E.shape[0])
    def decode(self,codes,D,bounds):
        h=codes.dense(); out=[]
        for b in bounds: out.append(h[:,:b]@D[:b])
        return torch.stack(out)
    def update(self,w,x,terms,adam,*,normalise,extra=None):
        gE,gD,gb=torch.zeros_like(w.E),torch.zeros_like(w.D),torch.zeros_like(w.b_enc)
        for t in terms:
            h=t.codes.dense(); m=(h>0).float(); L=t.latents if t.latents is not None else slice(None)
            lo=0
            D=w.D[L]; e=torch.zeros_like(D); d=torch.zeros_like(D); bb=torch.zeros(len(D))
            for j,hi in enumerate(t.bounds):
                gc=(t.g_y[j]@D[lo:hi].T+t.l1)*m[:,lo:hi]
                d[lo:hi]=h[:,lo:hi].T@t.g_y[j]; e[lo:hi]=gc.T@x; bb[lo:hi]=gc.sum(0); lo=hi
            gE[L]+=e; gD[L]+=d; gb[L]+=bb
        if extra is not None:
            gE[extra.latents]+=extra.E; gD[extra.latents]+=extra.D; gb[extra.latents]+=extra.b_enc
        carry=gb@w.E
        gD-=(gD*w.D).sum(1,keepdim=True)*w.D
        for p,g,a,s in ((w.E,gE,w.E_avg,w.E_square),(w.D,gD,w.D_avg,w.D_square),(w.b_enc,gb,w.b_avg,w.b_square)):
            a.lerp_(g,1-adam.beta1); s.mul_(adam.beta2).addcmul_(g,g,value=1-adam.beta2)
            p.addcdiv_(a/(1-adam.beta1**adam.step),(s/(1-adam.beta2**adam.step)).sqrt()+adam.eps,value=-adam.lr)
        if normalise: w.D.div_(w.D.norm(dim=1,keepdim=True).clamp(min=1e-12))
        return carry
def choose(device,d,n,**k): return Dense()
